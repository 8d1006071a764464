"""Plain clients: each reads requests from stdin, a line each, and prints every reply as a line.

`PROGRAM HOST PORT MODE`. They are what a user of the library would write and know of nothing.
"""
