"""The RPC surface between gateway and control plane.

`ostiary.proto`, the code generated from it (`make proto`), and the version rule in `version.py`. Only this package,
`link` and `control.services` know the RPC library.
"""
