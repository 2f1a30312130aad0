"""Messages with secrets print without their contents (design §9), whoever prints them.

protobuf's own `debug_redact` is not heeded by its Python runtime, so what prints is replaced, here for each message that
holds a secret or holds one that does.
"""

from . import ostiary_pb2

_WITH_SECRETS = (
    ostiary_pb2.AIProviderKey,
    ostiary_pb2.AIProviderKindBedrock,
    ostiary_pb2.AIProvider,
    ostiary_pb2.GetAIProvidersResponse,
)


def _redacted(message: object) -> str:
    return f"<{type(message).__name__} ***>"


for _kind in _WITH_SECRETS:
    setattr(_kind, "__repr__", _redacted)  # noqa: B010 - the generated types know nothing of it
    setattr(_kind, "__str__", _redacted)  # noqa: B010
