"""A MOA service and a load client that know nothing of the agent."""
