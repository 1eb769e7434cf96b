"""What is on disk: one module owns one format."""
