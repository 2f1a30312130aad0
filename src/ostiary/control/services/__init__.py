"""The RPC side of the control plane."""
