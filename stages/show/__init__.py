"""Parts of `heartcut show`: a summary of an artefact, as a record and as text."""
