"""The kernel side: probe, load, attach, pin, adopt, update and remove the eBPF programs.

Knows nothing of MOA, of the proxy, or of how a node is installed.
"""
