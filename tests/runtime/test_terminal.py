import io
from pathlib import Path

import msgspec

from ostiary.core.messages import Note
from ostiary.core.secret import Secret
from ostiary.runtime.plan import Address, ServerPlan, completed
from ostiary.runtime.terminal import Terminal, banner
from tests.support.supervised import server_plan


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def _plan(data_dir: Path, **control: object) -> ServerPlan:
    plan = server_plan(data_dir, listen=Address("127.0.0.1", 4000), metrics_listen=Address("127.0.0.1", 2112))
    assert plan.control is not None
    plan = msgspec.structs.replace(plan, control=msgspec.structs.replace(plan.control, **control))
    return completed(plan, control_port=5001, fake=Address("127.0.0.1", 4010), draw=lambda: "drawn")


def test_the_banner_says_where_everything_is_and_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "owner-token").write_text("ost_secret")
    text = banner(_plan(tmp_path), tmp_path)
    for part in (
        "ready on http://127.0.0.1:4000\n",
        "http://127.0.0.1:4000/docs",
        "http://127.0.0.1:2112/metrics",
        str(tmp_path / "owner-token"),
        "demo-openai and demo-anthropic",
        f'-H "Authorization: Bearer $(cat {tmp_path}/owner-token)"',
    ):
        assert part in text
    assert "ost_secret" not in text
    assert "drawn" not in text


def test_the_banner_points_to_a_token_that_was_given(tmp_path: Path) -> None:
    text = banner(_plan(tmp_path, bootstrap_token=Secret("a-token-given-by-the-operator")), tmp_path)
    assert "OSTIARY_BOOTSTRAP_TOKEN" in text
    assert "owner-token" not in text
    assert "given-by" not in text


def test_a_secret_note_is_for_a_screen_only() -> None:
    secret, plain = Note("shown once", only_terminal=True), Note("written to a file")
    screen, file = _Screen(), io.StringIO()
    for out in (screen, file):
        Terminal(out, out).note(secret)
        Terminal(out, out).note(plain)
    assert screen.getvalue() == "shown once\nwritten to a file\n"
    assert file.getvalue() == "written to a file\n"


def test_a_screen_that_has_gone_is_no_error() -> None:
    screen = io.StringIO()
    screen.close()
    Terminal(screen, screen).failure("nobody reads this")
