"""The RPC surface between gateway and control plane.

`ostiary.proto`, the code generated from it (`make proto`), the version rule in `version.py`, what prints of messages with
secrets in `redaction`. Only this package, `link` and `control.services` know the RPC library.
"""

from .redaction import redact

redact()
