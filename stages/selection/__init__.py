"""The wing of select: scores, columns and rows of a selection table, and revised labels."""
