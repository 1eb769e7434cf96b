"""The wing of the two trainings: what is taught, the training under way, its run."""
