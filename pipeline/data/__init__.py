"""Images in: sources, replayable views, loaders."""
