"""The pages about settings and headers are the tables of settings and of headers."""

from pathlib import Path

from ostiary.config import SETTINGS, headers_document
from ostiary.config.document import page
from ostiary.config.settings import Settings, variable
from ostiary.http1.fields import REQUEST_RULES, RESPONSE_RULES

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m ostiary.config.document > docs/configuration.md"


def test_the_committed_page_of_headers_is_current() -> None:
    text = headers_document.page()
    assert (PAGE.parent / "headers.md").read_text() == text, (
        "run: python -m ostiary.config.headers_document > docs/headers.md"
    )
    for rule in (*REQUEST_RULES, *RESPONSE_RULES):
        assert all(f"`{name}`" in text for name in rule.names.split())
    for name in ("actor_header_id", "actor_header_username", "actor_header_email"):
        assert f"| `{name}` | `{Settings.model_fields[name].default or 'off'}` |" in text


def test_every_setting_stands_on_it_with_its_variable() -> None:
    text = page()
    assert [name for name in SETTINGS if f"`{name}`<br>" not in text or f"`{variable(name)}`" not in text] == []
