"""Sockets: listeners, upstream pools and relays. No policy is decided here."""
