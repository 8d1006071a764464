"""A node's life: configuration, agent process, installation, checks and the command line."""
