"""Images from files: which files of a folder are images, their pixels, and network inputs."""
