"""Anthropic Messages over AWS Bedrock's InvokeModel (reference E.3), without I/O.

`generations`  what each generation of Claude takes there: one table
`request`      a Messages body and its beta flags as InvokeModel wants them
`answer`       event streams and errors of Bedrock as Anthropic writes them
"""

from .answer import MessagesStream, error_answer
from .generations import mapped_model
from .request import InvokeBody, beta_flags, invoke_body

__all__ = ["InvokeBody", "MessagesStream", "beta_flags", "error_answer", "invoke_body", "mapped_model"]
