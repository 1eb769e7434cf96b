"""The linear softmax head on cached features: its objective, its solver and influence scores."""
