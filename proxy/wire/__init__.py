"""Sans-I/O codecs: bytes in, events out. Nothing here knows a socket, a loop or a clock."""
