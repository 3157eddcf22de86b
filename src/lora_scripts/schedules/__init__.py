"""One file a schedule: `Config` and `factor(step, total, warmup, config)`."""
