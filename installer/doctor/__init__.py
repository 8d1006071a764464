"""Checks of a node: what was seen, and what to do about it (docs/CHECKS.md)."""
