"""What people look at: charts, thumbnails and one self-contained page. Knows no artefact."""
