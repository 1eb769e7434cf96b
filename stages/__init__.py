"""One module per command; orchestration only."""
