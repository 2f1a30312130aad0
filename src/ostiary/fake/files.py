"""Files, uploads, batches and moderations as OpenAI's API answers them.

Source: OpenAI's API reference, "Files", "Uploads", "Batch", "Moderations".

Nothing is kept: an object that is asked for by its id exists, and looks like any other.
"""

import time
from typing import Any

import msgspec
from msgspec import Struct

from .answer import PLACEHOLDER
from .asked import BadRequestError
from .forms import Fields

_DAY = 86_400
_HOUR = 3_600
_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
_LINE = b'{"id":"batch_req_1","custom_id":"request-1","response":{"status_code":200,"body":{}},"error":null}\n'


def created_file(form: Fields | None) -> dict[str, Any]:
    """The answer to an upload. Raises `BadRequestError`."""
    file = form.file("file") if form is not None else None
    if form is None or file is None:
        raise BadRequestError("Missing required parameter: 'file'.", "file")
    if not form.values.get("purpose"):
        raise BadRequestError("Missing required parameter: 'purpose'.", "purpose")
    return file_object(f"file-{PLACEHOLDER}", file.name, file.size, form.values["purpose"])


def file_object(
    file_id: str, name: str = "data.jsonl", size: int = len(_LINE), purpose: str = "batch"
) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": int(time.time()),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
    }


def file_list() -> dict[str, Any]:
    found = file_object("file-fake1")
    return _list(found)


def file_content(size: int) -> bytes:
    """Lines of JSON, at least so many bytes."""
    return _LINE * max(1, -(-size // len(_LINE)))


def deleted_file(file_id: str) -> dict[str, Any]:
    return {"id": file_id, "object": "file", "deleted": True}


class _UploadRequest(Struct):
    filename: str
    purpose: str
    bytes: int
    mime_type: str


def created_upload(body: bytes) -> dict[str, Any]:
    """The beginning of an upload in parts. Raises `BadRequestError`."""
    asked = _decoded(body, _UploadRequest)
    return _upload(f"upload_{PLACEHOLDER}", "pending", asked.filename, asked.bytes, asked.purpose)


def upload_part(upload_id: str, form: Fields | None) -> dict[str, Any]:
    """Raises `BadRequestError`."""
    if form is None or form.file("data") is None:
        raise BadRequestError("Missing required parameter: 'data'.", "data")
    part_id = f"part_{PLACEHOLDER}"
    return {"id": part_id, "object": "upload.part", "created_at": int(time.time()), "upload_id": upload_id}


def ended_upload(upload_id: str, step: str) -> dict[str, Any]:
    """`step`: complete or cancel."""
    if step == "cancel":
        return _upload(upload_id, "cancelled")
    return _upload(upload_id, "completed") | {"file": file_object(f"file-{PLACEHOLDER}")}


def _upload(
    upload_id: str, status: str, name: str = "data.jsonl", size: int = len(_LINE), purpose: str = "batch"
) -> dict[str, Any]:
    now = int(time.time())
    return {
        "id": upload_id,
        "object": "upload",
        "bytes": size,
        "created_at": now,
        "filename": name,
        "purpose": purpose,
        "status": status,
        "expires_at": now + _HOUR,
    }


class _BatchRequest(Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


def created_batch(body: bytes) -> dict[str, Any]:
    """Raises `BadRequestError`."""
    asked = _decoded(body, _BatchRequest)
    return batch(f"batch_{PLACEHOLDER}", "validating", asked.endpoint, asked.input_file_id, asked.metadata)


def batch(
    batch_id: str,
    status: str = "completed",
    endpoint: str = "/v1/chat/completions",
    input_file_id: str = "file-fake1",
    metadata: dict[str, str] | None = None,
) -> dict[str, Any]:
    now = int(time.time())
    done = 1 if status == "completed" else 0
    found: dict[str, Any] = {
        "id": batch_id,
        "object": "batch",
        "endpoint": endpoint,
        "errors": None,
        "input_file_id": input_file_id,
        "completion_window": "24h",
        "status": status,
        "output_file_id": "file-fake2" if done else None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + _DAY,
        "request_counts": {"total": done, "completed": done, "failed": 0},
        "metadata": metadata,
    }
    if done:
        found["usage"] = {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 18,
        }
    return found


def batch_list() -> dict[str, Any]:
    return _list(batch("batch_fake1"))


class _ModerationRequest(Struct):
    input: Any
    model: str = "omni-moderation-latest"


def moderation(body: bytes) -> dict[str, Any]:
    """A verdict for each input: what holds the word "violence" is flagged. Raises `BadRequestError`."""
    asked = _decoded(body, _ModerationRequest)
    inputs = asked.input if isinstance(asked.input, list) else [asked.input]
    if not inputs:
        raise BadRequestError("Missing required parameter: 'input'.", "input")
    return {"id": f"modr-{PLACEHOLDER}", "model": asked.model, "results": [_verdict(one) for one in inputs]}


def _verdict(given: object) -> dict[str, Any]:
    bad = "violence" in str(given)
    return {
        "flagged": bad,
        "categories": {name: bad and name == "violence" for name in _CATEGORIES},
        "category_scores": {name: 0.9 if bad and name == "violence" else 0.0001 for name in _CATEGORIES},
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }


def _list(found: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [found], "first_id": found["id"], "last_id": found["id"], "has_more": False}


def _decoded(body: bytes, kind: type[Any]) -> Any:  # Any: the struct asked for
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        raise BadRequestError(f"Invalid request: {exc}.") from exc
    except msgspec.DecodeError as exc:
        raise BadRequestError("We could not parse the JSON body of your request.") from exc
