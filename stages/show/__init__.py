"""The wing of show: what an artefact is like, as a record and as text."""
