"""moa-watcher: pings every instance of a registry, and takes the unreachable out."""
