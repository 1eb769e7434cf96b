"""Architectures by name, and checked loading of published checkpoints."""
