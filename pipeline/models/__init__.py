"""Architectures by name; checkpoints of the field, loaded and checked."""
