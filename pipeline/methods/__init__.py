"""What the papers say: pure tensor maths, no files, no devices, no randomness of its own."""
