"""The .deb on a bare Debian."""
