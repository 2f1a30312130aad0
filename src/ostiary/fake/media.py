"""Images and audio as OpenAI's API answers them, whole and as events.

Source: OpenAI's API reference, "Images" and "Audio".

The bytes only begin like a picture or a sound; how many there are is for `size` to say.
"""

import base64
import time
from typing import Any

import msgspec
from msgspec import Struct

from . import event_stream
from .asked import BadRequestError
from .behaviour import Behaviour
from .delivery import Reply
from .event_stream import Event
from .forms import Fields

JSON = ("content-type", "application/json")
STREAM = (("content-type", "text/event-stream; charset=utf-8"), ("cache-control", "no-cache"))

_IMAGE_BYTES = 2048
_AUDIO_BYTES = 8192
_AUDIO_PIECE = 4096
_BYTES_PER_TOKEN = 4
_BYTES_PER_SECOND = 32_000  # of 16-bit mono at 16 kHz
_TOKENS_PER_IMAGE = 1056
_PNG = b"\x89PNG\r\n\x1a\n"
_AUDIO_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


class _ImageRequest(Struct):
    prompt: str = ""
    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    partial_images: int | None = None
    quality: str | None = None
    size: str | None = None


class _SpeechRequest(Struct):
    model: str = ""
    input: str = ""
    voice: Any = None
    response_format: str = "mp3"
    stream_format: str = "audio"


def image_request(body: bytes, form: Fields | None) -> _ImageRequest:
    """What is asked for, in JSON or in a form. Raises `BadRequestError`."""
    if form is None:
        asked: _ImageRequest = _decoded(body, _ImageRequest)
        return asked
    try:
        return msgspec.convert(form.values, _ImageRequest, strict=False)
    except msgspec.ValidationError as exc:
        raise BadRequestError(f"Invalid value: {exc}.") from exc


def images(asked: _ImageRequest, form: Fields | None, wanted: Behaviour, *, edited: bool, needs_prompt: bool) -> Reply:
    """Pictures. Raises `BadRequestError`."""
    if needs_prompt and not asked.prompt:
        raise BadRequestError("Missing required parameter: 'prompt'.", "prompt")
    picture = base64.b64encode(_PNG + bytes(max(wanted.size or _IMAGE_BYTES, len(_PNG)) - len(_PNG))).decode()
    count = min(max(asked.n or 1, 1), 10)
    details = {
        "created": int(time.time()),
        "background": "opaque",
        "output_format": "png",
        "quality": asked.quality or "high",
        "size": asked.size or "1024x1024",
    }
    given = len(form.files) if form is not None else 0
    usage = _tokens(
        wanted,
        {"text": len(asked.prompt) // _BYTES_PER_TOKEN, "image": given * _TOKENS_PER_IMAGE},
        count * _TOKENS_PER_IMAGE,
    )
    if not asked.stream:
        answer = details | {"data": [{"b64_json": picture}] * count} | _with_usage(wanted, usage)
        return Reply(wanted.status or 200, (JSON,), (msgspec.json.encode(answer),))
    name = "image_edit" if edited else "image_generation"
    shown = {"b64_json": picture, "created_at": details.pop("created")} | details
    events = [
        _event({"type": f"{name}.partial_image", "partial_image_index": at} | shown)
        for at in range(asked.partial_images or 0)
    ]
    events.append(_event({"type": f"{name}.completed"} | shown | _with_usage(wanted, usage)))
    return _stream(events, wanted)


def speech(body: bytes, wanted: Behaviour) -> Reply:
    """Sound. Raises `BadRequestError`."""
    asked = _decoded(body, _SpeechRequest)
    for name in ("model", "input", "voice"):
        if not getattr(asked, name):
            raise BadRequestError(f"Missing required parameter: '{name}'.", name)
    if asked.response_format not in _AUDIO_TYPES:
        raise BadRequestError(f"Invalid value for 'response_format': {asked.response_format!r}.", "response_format")
    sound = b"ID3" + bytes(max(wanted.size or _AUDIO_BYTES, 3) - 3)
    pieces = tuple(sound[at : at + _AUDIO_PIECE] for at in range(0, len(sound), _AUDIO_PIECE))
    if asked.stream_format != "sse":
        kind = ("content-type", _AUDIO_TYPES[asked.response_format])
        return Reply(wanted.status or 200, (kind,), pieces, stream=True)
    events = [_event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}) for piece in pieces]
    usage = {
        "input_tokens": _either(wanted.input_tokens, max(1, len(asked.input) // _BYTES_PER_TOKEN)),
        "output_tokens": _either(wanted.output_tokens, max(1, len(sound) // 100)),
    }
    usage["total_tokens"] = sum(usage.values())
    events.append(_event({"type": "speech.audio.done"} | _with_usage(wanted, usage)))
    return _stream(events, wanted)


def transcription(form: Fields | None, wanted: Behaviour, *, translated: bool) -> Reply:
    """Words for a sound. Raises `BadRequestError`."""
    file = form.file("file") if form is not None else None
    if form is None or file is None:
        raise BadRequestError("Missing required parameter: 'file'.", "file")
    model = form.values.get("model", "")
    if not model:
        raise BadRequestError("you must provide a model parameter", "model")
    said = wanted.text if wanted.text is not None else f"These are the words of {file.name}."
    if wanted.size:
        said = (f"{said} " * (wanted.size // (len(said) + 1) + 1))[: wanted.size]
    seconds = max(1, round(file.size / _BYTES_PER_SECOND))
    usage: dict[str, Any] = {"type": "duration", "seconds": seconds}
    if not model.startswith("whisper"):
        counted = _tokens(wanted, {"audio": seconds * 10, "text": 0}, max(1, len(said) // _BYTES_PER_TOKEN))
        counted["input_token_details"] = counted.pop("input_tokens_details")
        usage = {"type": "tokens"} | counted
    if form.values.get("stream") == "true" and not model.startswith("whisper"):
        words = said.split(" ")
        events = [
            _event({"type": "transcript.text.delta", "delta": word if at == 0 else f" {word}"})
            for at, word in enumerate(words)
        ]
        events.append(_event({"type": "transcript.text.done", "text": said} | _with_usage(wanted, usage)))
        return _stream(events, wanted)
    shape = form.values.get("response_format", "json")
    if shape in ("text", "srt", "vtt"):
        lines = {
            "text": f"{said}\n",
            "srt": f"1\n00:00:00,000 --> 00:00:{seconds % 60:02},000\n{said}\n\n",
            "vtt": f"WEBVTT\n\n00:00:00.000 --> 00:00:{seconds % 60:02}.000\n{said}\n\n",
        }
        return Reply(wanted.status or 200, (("content-type", "text/plain; charset=utf-8"),), (lines[shape].encode(),))
    answer: dict[str, Any] = {"text": said}
    if shape == "verbose_json":
        segment = {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": float(seconds),
            "text": said,
            "tokens": [50364],
            "temperature": 0.0,
            "avg_logprob": -0.2,
            "compression_ratio": 1.2,
            "no_speech_prob": 0.01,
        }
        task = "translate" if translated else "transcribe"
        answer = {"task": task, "language": "english", "duration": float(seconds), "text": said, "segments": [segment]}
    if not translated:
        answer |= _with_usage(wanted, usage)
    return Reply(wanted.status or 200, (JSON,), (msgspec.json.encode(answer),))


def _decoded(body: bytes, kind: type[Any]) -> Any:  # Any: the struct asked for
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as exc:
        raise BadRequestError("We could not parse the JSON body of your request.") from exc


def _tokens(wanted: Behaviour, taken: dict[str, int], output: int) -> dict[str, Any]:
    total = _either(wanted.input_tokens, max(1, sum(taken.values())))
    given = _either(wanted.output_tokens, output)
    return {
        "input_tokens": total,
        "output_tokens": given,
        "total_tokens": total + given,
        "input_tokens_details": {f"{kind}_tokens": count for kind, count in taken.items()},
    }


def _with_usage(wanted: Behaviour, usage: dict[str, Any]) -> dict[str, Any]:
    return {"usage": usage} if wanted.usage else {}


def _either(wanted: int | None, computed: int) -> int:
    return computed if wanted is None else wanted


def _event(fields: dict[str, Any]) -> Event:
    return Event(fields["type"], msgspec.json.encode(fields))


def _stream(events: list[Event], wanted: Behaviour) -> Reply:
    return Reply(wanted.status or 200, STREAM, tuple(event_stream.encode(events, wanted)), stream=True)
