"""Labelling models: one file each; see `contracts.Captioner`."""
