"""The stages: one module for each command, and a folder for each command that has more parts.

`heartcut report` begins in `report.write`, `heartcut sweep` in `sweep.run`.
"""
