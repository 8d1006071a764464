"""A node's installation as a plan of steps, each of which can be checked, applied and undone."""
