"""A usual report of tokens, whole.

Apart from the code that reads them: compiled modules keep no types in annotations, by which msgspec decodes.
"""

from msgspec import Struct


class CacheCreation(Struct, gc=False):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class Plain(Struct, gc=False, forbid_unknown_fields=True):
    """A `usage` object as nearly all of them are: numbers of the usual names, and nothing else that counts."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
