"""One file a kind of update; see `adapters.adapter.Update`."""
