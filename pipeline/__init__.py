"""The parts that stages are built from, independent of stages, configurations and commands."""
