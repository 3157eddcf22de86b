"""One file a kind of data; each defines `read(datasets, options) -> Scan`."""
