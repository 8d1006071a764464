"""Decisions as pure functions and small state machines; time and randomness are arguments."""
