"""Parts of `heartcut sweep`: its points, its tasks, its results, and their text."""
