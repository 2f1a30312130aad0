"""The control plane: the only part with database access."""
