"""Low-rank adapters: injection through PEFT, the Adapter itself, and the files it is read from."""
