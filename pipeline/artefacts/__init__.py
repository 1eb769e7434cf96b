"""Stored artefacts: one module owns one format."""
