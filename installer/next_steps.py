"""What a command tells to do next, where several tell the same."""

TO_INSTALL = "moactl install; in the foreground: moactl agent run"
"""Where nothing is installed."""
