"""Parts of `heartcut select`: scores, columns and rows of a selection table, and revised labels."""
