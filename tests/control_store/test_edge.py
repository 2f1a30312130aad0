"""Where a request comes from, and how much it may bring."""

import asyncio

import httpx
from fastapi import FastAPI, Request
from structlog.testing import capture_logs

from ostiary.control.api import errors
from ostiary.control.api.deps import RequestOrigin
from ostiary.control.api.edge import HEADER_FRONT_DOOR, MAX_BODY, Edge
from ostiary.control.metrics import ControlMetrics
from ostiary.core.ids import new_id
from ostiary.core.secret import Secret


def app(secret: str, metrics: ControlMetrics) -> FastAPI:
    made = FastAPI()
    errors.install(made)

    @made.get("/who")
    async def who(origin: RequestOrigin) -> dict[str, str]:
        return {"source_ip": origin.source_ip, "request_id": origin.request_id}

    @made.post("/size")
    @made.post("/rpc/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @made.get("/broken/{name}")
    async def broken(name: str) -> None:
        raise RuntimeError(f"a row of {name}")

    made.add_middleware(Edge, front_door_secret=Secret(secret), unlimited=("/rpc",), metrics=metrics)
    return made


def ask(
    secret: str, method: str, path: str, metrics: ControlMetrics | None = None, **request: object
) -> httpx.Response:
    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app(secret, metrics or ControlMetrics()), client=("10.0.0.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://ostiary") as client:
            return await client.request(method, path, **request)  # type: ignore[arg-type]

    return asyncio.run(go())


def test_the_front_door_is_believed_nobody_else() -> None:
    told = {"X-Forwarded-For": "6.6.6.6, 192.0.2.7", "X-Request-Id": new_id()}
    trusted = ask("s3cret", "GET", "/who", headers=told | {HEADER_FRONT_DOOR: "s3cret"})
    assert trusted.json() == {"source_ip": "192.0.2.7", "request_id": told["X-Request-Id"]}
    assert trusted.headers["x-ostiary-request-id"] == told["X-Request-Id"]
    for secret, claim in (("s3cret", {}), ("s3cret", {HEADER_FRONT_DOOR: "guess"}), ("", {HEADER_FRONT_DOOR: ""})):
        stranger = ask(secret, "GET", "/who", headers=told | claim)
        assert stranger.json()["source_ip"] == "10.0.0.9"
        assert stranger.json()["request_id"] == stranger.headers["x-ostiary-request-id"] != told["X-Request-Id"]


def test_a_forwarded_address_that_is_none_falls_back_to_the_peer() -> None:
    answer = ask("s", "GET", "/who", headers={HEADER_FRONT_DOOR: "s", "X-Forwarded-For": "unknown"})
    assert answer.json()["source_ip"] == "10.0.0.9"


def test_a_rest_body_has_a_limit_rpc_has_its_own() -> None:
    assert ask("s", "POST", "/size", content=b"x" * MAX_BODY).json() == MAX_BODY
    refused = ask("s", "POST", "/size", content=b"x" * (MAX_BODY + 1))
    assert refused.status_code == 413
    assert set(refused.json()) == {"message", "detail", "validations"}
    assert ask("s", "POST", "/rpc/size", content=b"x" * (MAX_BODY + 1)).json() == MAX_BODY + 1


def test_an_answer_to_a_bug_is_as_any_other_and_shows_nothing() -> None:
    metrics = ControlMetrics()
    with capture_logs() as logs:
        answer = ask("s", "GET", "/broken/secrets", metrics)
    assert answer.status_code == 500
    assert set(answer.json()) == {"message", "detail", "validations"}
    assert answer.headers["x-ostiary-request-id"]
    (told,) = logs
    assert told["error"] == "RuntimeError"
    assert told["at"].startswith("test_edge.py:")
    assert "secrets" not in str([told.get("event"), told.get("error"), told["at"]]) + answer.text
    assert counted(metrics) == {("/broken/{name}", "GET", "500"): 1}


def test_answers_are_counted_by_their_route() -> None:
    metrics = ControlMetrics()
    for method, path in (("GET", "/who"), ("GET", "/who"), ("PUT", "/who"), ("GET", "/a/path/of/a/stranger")):
        ask("s", method, path, metrics)
    ask("s", "BREW", "/a/path", metrics)
    assert counted(metrics) == {
        ("/who", "GET", "200"): 2,
        ("/who", "PUT", "405"): 1,
        ("other", "GET", "404"): 1,
        ("other", "OTHER", "404"): 1,
    }


def counted(metrics: ControlMetrics) -> dict[tuple[str, ...], float]:
    (family,) = [one for one in metrics.report() if one.name == "ostiary_control_requests"]
    return {sample.labels: sample.value for sample in family.samples}
