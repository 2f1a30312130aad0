"""The RPC surface between gateway and control plane.

`ostiary.proto`, the code generated from it (`make proto`), how its messages print (`redaction`), and the version rule in
`version.py`. Only this package, `link` and `control.services` know the RPC library.
"""

from . import redaction as redaction
