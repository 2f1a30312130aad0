"""What the providers answer beside generation: models, embeddings, and the small routes that clients call in passing."""

import base64
import hashlib
import time
from array import array
from typing import Any

import msgspec
from msgspec import Struct

from .answer import PLACEHOLDER
from .asked import BadRequestError
from .behaviour import MODELS

_OPENAI_MODELS = ("gpt-6-sol", "gpt-6-luna", "gpt-5.4-mini", "gpt-4.1", "text-embedding-3-small")
_ANTHROPIC_MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")
_RELEASED = 1_760_000_000
_RELEASED_AT = "2025-10-09T08:53:20Z"
_MAX_INPUTS = 2048
_MAX_DIMENSIONS = 3072
_DIMENSIONS = 1536


def models(*, anthropic: bool) -> dict[str, Any]:
    """The list, the names that stand for a behaviour included."""
    if anthropic:
        data = [_anthropic_model(name) for name in (*_ANTHROPIC_MODELS, *MODELS)]
        return {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
    return {"object": "list", "data": [_openai_model(name) for name in (*_OPENAI_MODELS, *MODELS)]}


def model(name: str, *, anthropic: bool) -> dict[str, Any] | None:
    """One model; None when it is not in the list."""
    known = _ANTHROPIC_MODELS if anthropic else _OPENAI_MODELS
    if name not in known and name not in MODELS:
        return None
    return _anthropic_model(name) if anthropic else _openai_model(name)


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _RELEASED, "owned_by": "fake"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": _RELEASED_AT,
        "lifecycle": "active",
    }


class _EmbeddingRequest(Struct):
    model: str = ""
    input: Any = None  # str, list of str, token list or list of token lists
    encoding_format: str = "float"
    dimensions: int | None = None


def embeddings(body: bytes) -> dict[str, Any]:
    """Vectors that depend on nothing but their input. Raises `BadRequestError`."""
    try:
        asked = msgspec.json.decode(body, type=_EmbeddingRequest)
    except msgspec.DecodeError as exc:
        raise BadRequestError("We could not parse the JSON body of your request.") from exc
    if not asked.model:
        raise BadRequestError("you must provide a model parameter", "model")
    dimensions = asked.dimensions or _DIMENSIONS
    if not 0 < dimensions <= _MAX_DIMENSIONS:
        raise BadRequestError(f"'dimensions' must be between 1 and {_MAX_DIMENSIONS}.", "dimensions")
    inputs = asked.input if isinstance(asked.input, list) else [asked.input]
    if inputs and isinstance(inputs[0], int):
        inputs = [inputs]
    if not inputs or inputs[0] in (None, "") or len(inputs) > _MAX_INPUTS:
        raise BadRequestError(f"'input' must hold 1 to {_MAX_INPUTS} non-empty inputs.", "input")
    encoded = [msgspec.json.encode(one) for one in inputs]
    tokens = sum(max(1, len(one) // 4) for one in encoded)
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(one, dimensions, asked.encoding_format)}
        for index, one in enumerate(encoded)
    ]
    return {
        "object": "list",
        "data": data,
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(text: bytes, dimensions: int, encoding: str) -> list[float] | str:
    digest = hashlib.shake_128(text).digest(dimensions)
    floats = array("f", ((byte - 127.5) / 127.5 / dimensions**0.5 for byte in digest))
    return base64.b64encode(floats.tobytes()).decode() if encoding == "base64" else floats.tolist()


def conversation() -> dict[str, Any]:
    return {"id": f"conv_{PLACEHOLDER}", "object": "conversation", "created_at": int(time.time()), "metadata": {}}
