"""moa-opsd: the node's supervisor, small, and alive when the agent is not."""
