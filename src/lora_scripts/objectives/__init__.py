"""One file an objective; see `contracts.Objective`."""
