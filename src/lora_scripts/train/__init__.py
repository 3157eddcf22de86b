"""Training: the loop, the plan, checkpoints, listeners."""
