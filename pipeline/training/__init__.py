"""Training a network: the learner, its losses, its optimiser, batches of several ranks."""
