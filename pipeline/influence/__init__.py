"""Influence of a cache's samples: inputs, scores at refitted heads, and the repaired head."""
