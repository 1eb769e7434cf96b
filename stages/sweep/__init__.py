"""The wing of sweep: its points, its tasks, its results, and what people read of it."""
