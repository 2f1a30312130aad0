"""Messages that hold secrets or what people wrote print as redacted, wherever they are printed.

Rules
- It is a property of the classes, not of loggers: `str`, `repr`, f-strings, `%s`, containers, tracebacks and
  `json.dumps(default=str)` all end at `__repr__` and `__str__`.
- A message that can hold such a message is one itself; which those are is read from the descriptors, so that a new
  message cannot be forgotten.
- Only `text_format` and `json_format`, which nobody calls by accident, and the wire still give the content.
"""

from typing import Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from . import ostiary_pb2

SECRET_BEARING: Final = frozenset(("AIProviderKey", "AIProviderKindBedrock", "RecordBatch"))
"""Those that hold it themselves."""


def redact() -> None:
    """Make the classes print so. Called when the package is imported."""
    for name, descriptor in ostiary_pb2.DESCRIPTOR.message_types_by_name.items():
        if holds_secrets(descriptor):
            kind = getattr(ostiary_pb2, name)
            for method in ("__repr__", "__str__"):
                setattr(kind, method, _redacted)


def holds_secrets(descriptor: Descriptor, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a message of this type can hold a secret at any depth."""
    if descriptor.name in SECRET_BEARING:
        return True
    below = seen | {descriptor.full_name}
    return any(
        field.message_type is not None
        and field.message_type.full_name not in below
        and holds_secrets(field.message_type, below)
        for field in descriptor.fields
    )


def _redacted(message: Message) -> str:
    return f"<{type(message).__name__} redacted>"
