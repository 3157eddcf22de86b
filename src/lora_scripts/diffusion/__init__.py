"""Diffusion as pure functions: timesteps, targets, loss weights, each with its paper's equation."""
