"""Builders, oracles and servers that several test modules share."""
