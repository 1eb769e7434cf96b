"""Published networks: one module for each architecture."""
