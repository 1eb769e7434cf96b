"""A configuration: its file, and the settings of every stage. Nothing here imports torch."""
