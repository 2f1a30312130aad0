"""Floors, aims, and what was measured."""

from dataclasses import dataclass
from typing import Literal

from .parts import DIRECT, NGINX, NGINX_LARGE, NGINX_TLS, OURS, OURS_TLS, Figures
from .works import CALLS

Verdict = Literal["aim", "floor", "missed", "–"]


@dataclass(frozen=True)
class Row:
    """One line. Several numbers (p50 and p99, plain and TLS) must all hold."""

    work: str
    floor: tuple[float, ...]
    aim: tuple[float, ...]
    measured: tuple[float, ...] | None
    detail: str = ""
    unit: str = ""
    more_is_better: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.measured is None:
            return "–"
        if self._holds(self.aim):
            return "aim"
        return "floor" if self._holds(self.floor) else "missed"

    def _holds(self, bounds: tuple[float, ...]) -> bool:
        pairs = zip(self.measured or (), bounds, strict=True)
        return all(value >= bound if self.more_is_better else value <= bound for value, bound in pairs)


def rows(figures: Figures) -> list[Row]:
    """What we hold ourselves to; what was not measured has no number."""
    return [
        _ratio(figures, "CPU per call, 2 KB → 1.5 KB, ÷ nginx", "calls", (3.0, 1.7)),
        _ratio(figures, "CPU per call with a 40 KB request, ÷ nginx", "calls-40k", (4.0, 2.5)),
        _ratio(figures, "CPU per stream, ÷ nginx", "stream", (2.0, 1.0)),
        _ratio(figures, "the same calls over TLS to the upstream, ÷ nginx with TLS", "tls", (3.0, 1.7), tls=True),
        _added_latency(figures),
        _stream_memory(figures),
        _two_workers(figures),
        _litellm(figures),
        Row(
            "control plane ingest, interceptions/s sustained",
            (2000.0,),
            (5000.0,),
            None if figures.ingest_per_second is None else (figures.ingest_per_second,),
            figures.ingest_note,
            more_is_better=True,
        ),
        _soak(figures),
    ]


def _ratio(figures: Figures, work: str, part: str, bounds: tuple[float, float], *, tls: bool = False) -> Row:
    compared = figures.compared.get(part, {})
    ours, theirs = compared.get(OURS_TLS if tls else OURS), compared.get(NGINX_TLS if tls else NGINX)
    floor, aim = bounds
    if ours is None or theirs is None:
        return Row(work, (floor,), (aim,), None)
    detail = (
        f"{ours.cpu_us:.1f} ÷ {theirs.cpu_us:.1f} µs; of lower quartiles {ours.quiet_us / theirs.quiet_us:.2f} "
        f"({ours.quiet_us:.1f} ÷ {theirs.quiet_us:.1f})"
    )
    if (large := compared.get(NGINX_LARGE)) is not None:
        detail += f"; ÷ nginx that takes a burst at once {ours.cpu_us / large.cpu_us:.2f} ({large.cpu_us:.1f} µs)"
    return Row(work, (floor,), (aim,), (ours.cpu_us / theirs.cpu_us,), detail)


def _added_latency(figures: Figures) -> Row:
    work, floor, aim = "added latency at 500 calls/s, p50 / p99, over direct", (0.6, 4.0), (0.3, 2.0)
    ours, direct = figures.latency.get(OURS), figures.latency.get(DIRECT)
    if ours is None or direct is None:
        return Row(work, floor, aim, None, unit=" ms")
    theirs = figures.latency[NGINX]
    detail = (
        f"direct {direct.p50_ms:.2f} / {direct.p99_ms:.2f} ms; "
        f"nginx adds {theirs.added_p50_ms:.2f} / {theirs.added_p99_ms:.2f}"
    )
    return Row(work, floor, aim, (ours.added_p50_ms, ours.added_p99_ms), detail, unit=" ms")


def _stream_memory(figures: Figures) -> Row:
    work, floor, aim = "memory per live stream, plain / TLS upstream", (40.0, 90.0), (20.0, 60.0)
    plain, over_tls = figures.stream_bytes.get(OURS), figures.stream_bytes.get(OURS_TLS)
    if plain is None or over_tls is None:
        return Row(work, floor, aim, None, unit=" KB")
    detail = f"nginx {figures.stream_bytes[NGINX] / 1000:.0f} / {figures.stream_bytes[NGINX_TLS] / 1000:.0f} KB"
    return Row(work, floor, aim, (plain / 1000, over_tls / 1000), detail, unit=" KB")


def _two_workers(figures: Figures) -> Row:
    compared = figures.compared.get("workers", {})
    one, two = compared.get("one worker"), compared.get("two workers")
    measured = None if one is None or two is None else (two.cpu_us / one.cpu_us,)
    detail = "" if one is None or two is None else f"{two.cpu_us:.1f} ÷ {one.cpu_us:.1f} µs"
    return Row("CPU per call with two workers ÷ with one", (1.15,), (1.05,), measured, detail)


def _litellm(figures: Figures) -> Row:
    compared = figures.gateways.get(CALLS.title, {})
    ours, theirs = compared.get(OURS), compared.get("LiteLLM")
    measured = None if ours is None or theirs is None else (ours.per_second / theirs.per_second,)
    detail = "" if ours is None or theirs is None else f"{ours.per_second:,.0f} ÷ {theirs.per_second:,.0f} calls/s"
    return Row("calls/s ÷ LiteLLM, same core, same work", (50.0,), (200.0,), measured, detail, more_is_better=True)


def _soak(figures: Figures) -> Row:
    work, floor, aim = "memory after 1 M requests ÷ after 10 k", (1.2,), (1.05,)
    if figures.soak is None:
        return Row(work, floor, aim, None)
    short, long, count = figures.soak
    return Row(work, floor, aim, (long / short,), f"{long / 1e6:.1f} ÷ {short / 1e6:.1f} MB, after {count:,}")
