"""One file an optimizer: `Config` and `build(groups, config)`."""
