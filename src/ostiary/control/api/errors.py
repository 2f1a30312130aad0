"""REST errors: one shape, `{"message", "detail", "validations": [{"field", "detail"}]}`.

`message` says what is wrong, `detail` why and what to do about it. Neither ever quotes a secret, a statement or a row.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ostiary.control.database import DATABASE_ERRORS, cause, where

log = structlog.get_logger(__name__)

_RETRY_AFTER_SECONDS: Final = "2"


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    detail: str


class ErrorBody(BaseModel):
    """The body of every error answer of the REST API."""

    message: str
    detail: str = ""
    validations: list[FieldProblem] = []


class ApiError(Exception):
    """Raise it anywhere below a route; it becomes the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        detail: str = "",
        validations: Sequence[FieldProblem] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message=message, detail=detail, validations=list(validations))
        self.headers = headers


def install(app: FastAPI) -> None:
    """Give every error of `app` the shape above."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    for kind in DATABASE_ERRORS:
        app.add_exception_handler(kind, _database_error)


def problem_detail(error: Mapping[str, Any], request: Request) -> str:
    """What to say of one of pydantic's errors, without its `input`, which may be a key."""
    if error["type"] not in ("model_attributes_type", "missing") or len(error["loc"]) > 1:
        return "must be an object" if error["type"] == "model_attributes_type" else str(error["msg"])
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return "must be a JSON object"
    # without it the body is not read as JSON, whatever it is; `curl -d` sends another one by itself
    return "must be a JSON object, sent with Content-Type: application/json"


class _Answer(JSONResponse):
    """What is told may quote the name of a field: half a surrogate pair in it must not fail the answer."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _answer(status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> JSONResponse:
    return _Answer(body.model_dump(), status_code=status, headers=headers)


async def _api_error(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, ApiError)
    return _answer(exc.status, exc.body, exc.headers)


async def _http_exception(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404:
        message, detail = "Not found.", f"There is nothing at {request.url.path}; the API is described at /docs."
        if not request.url.path.startswith("/api/"):
            # a client whose base URL lacks the provider shows the message alone
            message = "Not found. Model calls go to /api/v2/ai-gateway/<provider>/…, see `ostiary providers list`."
    elif exc.status_code == 405:
        message, detail = "Method not allowed.", f"{request.url.path} does not take {request.method}."
    else:
        message, detail = str(exc.detail), ""
    return _answer(exc.status_code, ErrorBody(message=message, detail=detail), dict(exc.headers or {}))


async def _invalid_request(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    # `input` is left out: it may hold a key
    problems = [
        FieldProblem(
            field=".".join(str(part) for part in error["loc"][1:]) or "body", detail=problem_detail(error, request)
        )
        for error in exc.errors()
    ]
    paging = next((problem.field for problem in problems if problem.field in ("limit", "offset")), None)
    message = f"Invalid pagination {paging} value." if paging else "Invalid request."
    return _answer(400, ErrorBody(message=message, validations=problems))


async def _database_error(request: Request, exc: Exception) -> JSONResponse:
    reason = cause(exc)
    log.error("failing request for the database", path=request.url.path, cause=reason)
    body = ErrorBody(message="The database cannot be used right now.", detail=f"{reason}; try again.")
    return _answer(503, body, {"Retry-After": _RETRY_AFTER_SECONDS})


def unexpected(request: Request, exc: Exception) -> JSONResponse:
    """The answer to what nobody expected; the log has it with its place, and without its text, which may quote a row."""
    log.error("failing request by a bug", path=request.url.path, error=type(exc).__name__, at=where(exc))
    return _answer(500, ErrorBody(message="Internal error.", detail="This is a bug; the server's log has more."))
