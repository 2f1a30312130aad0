"""Where the numbers of `ostiary top` come from.

Rules
- What all gateways did, the API knows: `traffic` is made from their records, `replicas` from what they tell of themselves
  every ten seconds. That covers gateways anywhere, and is a second or so behind.
- What a machine does at this moment only its `/metrics` page knows. It is asked where its address is known and can be
  reached; no token is sent there.
- A source that fails is told by name and reason; the others are shown. Nothing is asked again before `AGAIN` seconds.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from .client import Client, is_local
from .failure import Failure, wrong_usage

T = TypeVar("T")

TRAFFIC: Final = "/api/v2/ai-gateway/traffic"
REPLICAS: Final = "/api/v2/ai-gateway/replicas"
REPLICAS_AGAIN: Final = 5.0
"""Seconds: gateways report every ten, or soon after a change."""
MAX_PAGES: Final = 16
MAX_PAGE_BYTES: Final = 8 * 1024**2
_PAGE_TIMEOUT: Final = httpx.Timeout(2.0, connect=1.0)

GAUGES: Final = {
    "in_flight": "ostiary_interceptions_inflight",
    "connections": "ostiary_client_connections",
    "upstream_idle": "ostiary_upstream_idle_connections",
    "journal_bytes": "ostiary_journal_bytes",
    "records_pending": "ostiary_link_records_pending",
    "workers": "ostiary_link_workers",
    "link_up": "ostiary_link_up",
}
RATES: Final = {
    "calls": "ostiary_interceptions",
    "passthrough": "ostiary_passthrough",
    "refused": "ostiary_refused_requests",
    "tokens": "ostiary_tokens",
}


@dataclass(frozen=True)
class Machine:
    """A metrics page. `rates` are a second's, of the time since it was read last; None when it was not."""

    url: str
    gauges: dict[str, float]
    rates: dict[str, float] | None


@dataclass(frozen=True)
class Unreachable:
    """What is missing from a look, and why."""

    what: str
    why: str


@dataclass
class Look:
    """What was found at one moment."""

    server: str
    traffic: dict[str, Any] | None = None
    replicas: dict[str, Any] | None = None
    machines: list[Machine] = field(default_factory=list)
    unreachable: list[Unreachable] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "server": self.server,
            "traffic": self.traffic,
            "replicas": self.replicas,
            "machines": [{"url": one.url, **one.gauges, "rates": one.rates} for one in self.machines],
            "unreachable": [{"what": one.what, "why": one.why} for one in self.unreachable],
        }


class Source:
    """Looks again and again. `pages`: the metrics pages to read; `guessed`: nobody named them."""

    def __init__(
        self,
        client: Client,
        window: int,
        pages: list[str],
        *,
        guessed: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._window = window
        self._pages = pages
        self._guessed = guessed
        self._clock = clock
        self._http = httpx.Client(timeout=_PAGE_TIMEOUT, trust_env=False)
        self._counters: dict[str, tuple[float, dict[str, float]]] = {}
        self._replicas: dict[str, Any] | None = None
        self._replicas_at = -math.inf

    def close(self) -> None:
        self._http.close()

    def look(self) -> Look:
        """Never fails: what does is said in it."""
        found = Look(self._client.place.url)
        found.traffic = self._try(found, "traffic", lambda: self._client.get(TRAFFIC, window=self._window))
        if self._clock() - self._replicas_at >= REPLICAS_AGAIN:
            self._replicas = self._try(found, "gateways, keys, breakers", lambda: self._client.get(REPLICAS))
            self._replicas_at = self._clock() if self._replicas is not None else -math.inf
        found.replicas = self._replicas
        for url in self._pages:
            machine = self._try(found, f"{url}", lambda url=url: self._machine(url))  # type: ignore[misc]
            if machine is not None:
                found.machines.append(machine)
        return found

    def _try(self, found: Look, what: str, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except Failure as failure:
            found.unreachable.append(Unreachable(what, failure.message))
            return None

    def _machine(self, url: str) -> Machine:
        families = self._page(url)
        now, counters = self._clock(), {name: families.get(family, 0.0) for name, family in RATES.items()}
        before = self._counters.get(url)
        self._counters[url] = now, counters
        rates = None
        if before is not None and now > before[0]:
            # a link that was started anew counts from nothing
            rates = {name: max(0.0, counters[name] - before[1][name]) / (now - before[0]) for name in counters}
        return Machine(url, {name: families[family] for name, family in GAUGES.items() if family in families}, rates)

    def _page(self, url: str) -> dict[str, float]:
        """Family → the sum of its samples."""
        hint = "; name the page of a gateway with --metrics" if self._guessed else ""
        try:
            with self._http.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise Failure(f"it answers {answer.status_code}, not with metrics{hint}")
                text = _text(answer.iter_bytes())
            return _sums(text)
        except httpx.HTTPError as exc:
            reason = str(exc) if isinstance(exc, httpx.ConnectError) else type(exc).__name__
            raise Failure(f"it cannot be reached ({reason}){hint}") from None
        except ValueError:
            raise Failure(f"it is no page of metrics{hint}") from None


def _text(chunks: Iterable[bytes]) -> str:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MAX_PAGE_BYTES:
            raise Failure(f"its page is larger than {MAX_PAGE_BYTES // 1024**2} MiB")
    return content.decode()


def _sums(text: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        if family.type in ("counter", "gauge"):
            wanted = (family.name, f"{family.name}_total")
            values = (sample.value for sample in family.samples if sample.name in wanted)
            sums[family.name] = sum(value for value in values if math.isfinite(value))
    if not any(name.startswith("ostiary_") for name in sums):
        raise Failure("it is not of an Ostiary gateway")
    return sums


def metrics_pages(named: list[str], server: str) -> tuple[list[str], bool]:
    """The pages to read, and whether they are a guess: that of the server on this machine."""
    if named:
        if len(named) > MAX_PAGES:
            wrong_usage(f"--metrics takes at most {MAX_PAGES} pages")
        return [_page_url(one) for one in named], False
    return ([url] if is_local(server) and (url := _page_of(server)) else []), True


def _page_url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        wrong_usage(f"--metrics must be a URL or HOST:PORT; it is {text!r}")
    return url if parsed.path not in ("", "/") else str(parsed.copy_with(path="/metrics"))


def _page_of(server: str) -> str:
    """Where the settings say that it is, if they are of this server; empty otherwise, and when it is off."""
    from ostiary.config import ConfigError, load

    try:
        settings = load({}, os.environ).settings
    except ConfigError:
        return ""
    listen = settings.metrics_listen
    if listen is None or httpx.URL(server).port != settings.listen.port:
        return ""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104  asked of ourselves
    return f"http://{f'[{host}]' if ':' in host else host}:{listen.port}/metrics"
