"""What a process writes: in processes of their own, since logging is set up once a process."""

import json
import subprocess
import sys
import textwrap

import pytest

from tests.support.supervised import ROOT


def _log(program: str, *, style: str = "json", level: str = "info") -> list[str]:
    preamble = f"""
        import logging, os, sys
        from ostiary.core.secret import Secret
        from ostiary.core.settings import LogSettings
        from ostiary.runtime.logs import configure_logging, get_logger
        configure_logging(LogSettings(format={style!r}, level={level!r}), "worker-0")
        log = get_logger()
    """
    code = textwrap.dedent(preamble) + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=True, timeout=30
    )
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_with_component_and_pid() -> None:
    (line,) = _log("log.info('reloading providers', revision=7, names=('a', 'b'))")
    event = json.loads(line)
    assert event["message"] == "reloading providers"
    assert (event["component"], event["level"], event["revision"]) == ("worker-0", "info", 7)
    assert isinstance(event["pid"], int)
    assert event["timestamp"].endswith("Z")


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_secret_is_never_written_not_even_from_a_traceback(style: str) -> None:
    program = """
        def fail(token):
            raise RuntimeError("refused")
        log.info("starting", key=Secret("s3cr3t"), nested={"key": Secret("s3cr3t")})
        try:
            fail("s3cr3t-local")
        except RuntimeError:
            log.exception("ending")
        logging.getLogger("lib").warning("using %s", Secret("s3cr3t"))
    """
    text = "\n".join(_log(program, style=style))
    assert "s3cr3t" not in text.replace('fail("s3cr3t-local")', "")
    assert "***" in text
    assert "RuntimeError: refused" in text


def test_libraries_come_out_in_the_same_form_from_warnings_on() -> None:
    program = """
        logging.getLogger("uvicorn").info("not wanted")
        logging.getLogger("uvicorn").warning("slow %s", "start")
    """
    (line,) = _log(program)
    assert json.loads(line)["message"] == "slow start"
    assert json.loads(line)["component"] == "worker-0"


def test_levels_below_the_one_asked_for_are_silent() -> None:
    assert _log("log.info('no'); log.warning('no'); logging.getLogger('x').warning('no')", level="error") == []


def test_a_reader_that_has_gone_costs_the_line_and_nothing_else() -> None:
    _log(
        """
        read_end, write_end = os.pipe()
        os.close(read_end)
        os.dup2(write_end, 2)
        log.info("into the void")
        logging.getLogger("lib").warning("into the void")
    """
    )


def test_colours_are_for_terminals_only() -> None:
    (line,) = _log("log.info('starting')", style="console")
    assert "\x1b" not in line


def test_the_set_up_does_not_load_what_a_worker_does_not_need() -> None:
    (line,) = _log("log.info('loaded', modules=[m for m in ('rich', 'pydantic', 'fastapi') if m in sys.modules])")
    assert json.loads(line)["modules"] == []
