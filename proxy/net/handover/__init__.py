"""Sockets of one agent to another, one by one, while both serve (docs/UPGRADE.md)."""
