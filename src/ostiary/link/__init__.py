"""The connection of a machine to its control plane."""
