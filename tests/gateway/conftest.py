"""Fixtures of the request path's plays."""

from collections.abc import Iterator

import pytest
from gateway_stage import Records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    """One journal for all plays of a module: each looks only at what was written since it began."""
    found = Records(tmp_path_factory.mktemp("journal"))
    yield found
    found.journal.close()
