"""The wing of report: one self-contained page of charts, tables and pictures."""
