"""The page about settings is the table of settings."""

from pathlib import Path

from ostiary.config import SETTINGS
from ostiary.config.document import page
from ostiary.config.settings import variable

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m ostiary.config.document > docs/configuration.md"


def test_every_setting_stands_on_it_with_its_variable() -> None:
    text = page()
    assert [name for name in SETTINGS if f"`{name}`<br>" not in text or f"`{variable(name)}`" not in text] == []
