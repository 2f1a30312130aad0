"""Which of OpenAI's routes beside generation is answered by what.

Rules
- Pure. `reply` gives None for what is none of these routes.
- The body is JSON, or a form, of which only the small parts and the sizes of its files are known.
"""

from typing import Any

import msgspec
from msgspec import Struct

from . import catalog, files, media
from .behaviour import Behaviour
from .delivery import Reply
from .forms import Fields

ROUTES = (
    "/embeddings",
    "/moderations",
    *("/images/generations", "/images/edits", "/images/variations"),
    *("/audio/speech", "/audio/transcriptions", "/audio/translations"),
    *("/files", "/files/*", "/uploads", "/uploads/*", "/batches", "/batches/*"),
)


def reply(method: str, route: str, body: bytes, form: Fields | None, wanted: Behaviour) -> Reply | None:
    """The answer; of the whole bytes of its body that `wanted.size` asks for. Raises `BadRequestError`."""
    if method == "POST" and route in ("/images/generations", "/images/edits", "/images/variations"):
        asked = media.image_request(body, form)
        kind = route.removeprefix("/images/")
        return media.images(asked, form, wanted, edited=kind == "edits", needs_prompt=kind != "variations")
    if method == "POST" and route == "/audio/speech":
        return media.speech(body, wanted)
    if method == "POST" and route in ("/audio/transcriptions", "/audio/translations"):
        return media.transcription(form, wanted, translated=route == "/audio/translations")
    if method == "GET" and route.startswith("/files/") and route.endswith("/content"):
        content = files.file_content(wanted.size)
        return Reply(wanted.status or 200, (("content-type", "application/octet-stream"),), (content,))
    answer = _object(method, route, body, form)
    if answer is None:
        return None
    return Reply(wanted.status or 200, (media.JSON,), (msgspec.json.encode(answer),))


def _object(method: str, route: str, body: bytes, form: Fields | None) -> dict[str, Any] | None:
    _, family, *rest = (*route.split("/"), "")
    part = rest[0] if rest else ""
    step = rest[1] if len(rest) > 1 else ""
    match method, family, bool(part), step:
        case "POST", "embeddings", False, _:
            return catalog.embeddings(body)
        case "POST", "moderations", False, _:
            return files.moderation(body)
        case "POST", "files", False, _:
            return files.created_file(form)
        case "GET", "files", False, _:
            return files.file_list()
        case "GET", "files", True, "":
            return files.file_object(part)
        case "DELETE", "files", True, "":
            return files.deleted_file(part)
        case "POST", "uploads", False, _:
            return files.created_upload(body)
        case "POST", "uploads", True, "parts":
            return files.upload_part(part, form)
        case "POST", "uploads", True, "complete" | "cancel":
            return files.ended_upload(part, step)
        case "POST", "batches", False, _:
            return files.created_batch(body)
        case "GET", "batches", False, _:
            return files.batch_list()
        case "GET", "batches", True, "":
            return files.batch(part)
        case "POST", "batches", True, "cancel":
            return files.batch(part, "cancelling")
    return None


class _Named(Struct):
    model: Any = None


def model_of(body: bytes, form: Fields | None) -> str:
    """The model that a request names; empty when it names none."""
    if form is not None:
        return form.values.get("model", "")
    try:
        model = msgspec.json.decode(body, type=_Named).model
    except msgspec.DecodeError:
        return ""
    return model if isinstance(model, str) else ""


def known(route: str) -> str | None:
    """The name under which a route of these is counted."""
    if route in ROUTES:
        return route
    subtree = f"/{route.split('/')[1]}/*" if route.count("/") > 1 else ""
    return subtree if subtree in ROUTES else None
