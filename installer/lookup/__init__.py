"""moa-lookup: the lookup service as a process."""
