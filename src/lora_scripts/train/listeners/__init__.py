"""One file a behaviour during training; each listens to events."""
