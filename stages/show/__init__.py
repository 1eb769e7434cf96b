"""Parts of `heartcut show`: a description of an artefact, as a record and as text."""
