"""Where services are: the Redis and static registries behind one interface."""
