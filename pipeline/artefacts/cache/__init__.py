"""The teacher cache: one module for each part of its format."""
