"""Parts of both trainings: the inputs of distillation, the training under way, its run."""
