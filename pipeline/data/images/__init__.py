"""Images from files: which files of a folder are images, and their pixels."""
