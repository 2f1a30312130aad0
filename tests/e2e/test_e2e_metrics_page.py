"""The metrics page of a running server is the one that docs/observability.md describes, and its labels are bounded."""

import re
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import CHAT, DATA_PLANE, MESSAGES, Person
from tests.support.fake_provider import FakeProvider
from tests.support.raw_http import ask
from tests.support.server import NO_BREAKER, Server, eventually, open_directory

ROW = re.compile(r"^\| `(ostiary_[a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\| .+ \|$", re.MULTILINE)
MODELS_MAX = 200


def documented() -> dict[str, tuple[str, set[str]]]:
    page = (Path(__file__).parents[2] / "docs/observability.md").read_text()
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(page)}


def served(server: Server) -> dict[str, tuple[str, list[dict[str, str]]]]:
    """Type and the labels of each sample, by the name that the page's TYPE line has."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(server.metrics_url).text):
        name = family.name + ("_total" if family.type == "counter" else "")
        samples = [{key: value for key, value in one.labels.items() if key != "le"} for one in family.samples]
        found[name] = (family.type, samples)
    return found


def test_the_page_is_as_documented_and_bounded(own_fake: FakeProvider) -> None:
    with open_directory() as directory:
        server = Server(directory, own_fake, "--workers", "1", **NO_BREAKER).start()
        try:
            person = Person(server, "ann", server.new_token("ann"))
            for number in range(MODELS_MAX + 10):
                assert person.call(CHAT.path(), CHAT.body(model=f"model-{number}")).status == 200
            person.call(MESSAGES.path(), MESSAGES.body(model="fake-429"))
            person.call(CHAT.path(), CHAT.body(model="fake-503"))
            assert person.call("/openai/v1/models/a-raw-path", b"", method="GET").status in (200, 404)
            ask(server.port, "POST", f"{DATA_PLANE}/openai/v1/chat/completions", {}, b"{}")
            calls = MODELS_MAX + 12
            eventually(
                lambda: server.metric("ostiary_journal_records_total") >= 2 * calls, what="a report of all calls"
            )
            page, table = served(server), documented()
            people = [person.token, "ann", *(one["id"] for one in server.owner.get("/api/v2/users").json())]
        finally:
            server.stop()
    assert {name: kind for name, (kind, _) in page.items()} == {name: kind for name, (kind, _) in table.items()}
    for name, (_, samples) in page.items():
        for labels in samples:
            assert set(labels) == table[name][1], name
            assert not [value for value in labels.values() if value in people or "a-raw-path" in value]
    models = {labels["model"] for labels in page["ostiary_interceptions_total"][1] if labels["provider"] == "openai"}
    assert len(models) == MODELS_MAX + 1
    assert "other" in models
