"""Influence of a cache's samples: what is scored, at which heads, and the repaired head."""
