"""The control plane: rules from elsewhere."""
