"""The parts that stages are made of. Nothing here knows a stage, a configuration or a command."""
