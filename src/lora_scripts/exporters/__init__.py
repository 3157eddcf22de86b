"""One file a target format; see `contracts.Exporter`."""
