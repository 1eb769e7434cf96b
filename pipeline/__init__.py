"""The parts: data, artefacts, methods, models. No module here knows stages, Typer or configs."""
