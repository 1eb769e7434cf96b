"""The networks of the literature: one module for each architecture."""
