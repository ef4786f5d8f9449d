"""Experiments, one file each; `bases/` holds what they are composed of."""
