"""Dumps stay in their directory, whatever they are called, and below their limit."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ostiary.gateway.dump_files import REQUEST, RESPONSE, DumpFiles, Place, name_of, place_of

MIB = 1 << 20
_names = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=400),  # lone surrogates too: JSON can hold them
    st.sampled_from(
        ["", ".", "..", "/", "/etc/passwd", "../../x", "a\0b", "a\nb", "passthrough", ".lock", "-rf", "\\..\\x"]
    ),
    st.text(st.sampled_from("./\0\\é\ud800x"), max_size=12),
)


def dump(files: DumpFiles, place: Place, size: int = 10) -> None:
    files.append(place, REQUEST, b"x" * size, new=True)
    files.append(place, RESPONSE, b"y" * size, new=True)


def below(base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file() and path.name != ".lock")


@given(_names, st.one_of(st.none(), _names), _names, _names, st.integers(1, 99), st.integers(-1, 2**48))
@example("x" * 10_000, "é" * 10_000, "/" + "y" * 10_000, "z" * 10_000, 1, 0)
def test_a_dump_stands_in_its_directory_whatever_it_is_called(
    provider: str, model: str | None, path: str, interception_id: str, number: int, at_ms: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "base"
        place = place_of(provider, model, path, interception_id, number, at_ms)
        files = DumpFiles(str(base), 0)
        dump(files, place)
        found = below(Path(directory))
        assert len(found) == 2
        for name in found:
            assert name.isprintable()
            parts = Path(name).parts
            assert len(parts) == 4
            assert parts[0] == "base"
            assert (parts[2] == "passthrough") == (not model)
        assert files.remove_oldest() == 2
        assert below(Path(directory)) == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gpt-5.1", "gpt-5.1"),
        ("anthropic/claude-sonnet-5", "anthropic-claude-sonnet-5"),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", "anthropic.claude-3-5-sonnet-20241022-v2:0"),
        ("arn:aws:bedrock:eu-west-1:1:profile/x", "arn:aws:bedrock:eu-west-1:1:profile-x"),
        ("模型 7", "模型 7"),
        ("..", "_.."),
        ("/etc", "_-etc"),
        ("", "_"),
        ("passthrough", "_passthrough"),
    ],
)
def test_a_name_says_what_it_names(text: str, name: str) -> None:
    assert name_of(text) == name


def test_long_names_stay_apart() -> None:
    assert name_of("x" * 500) != name_of("x" * 501)
    assert len(name_of("é" * 500).encode()) <= 180


def test_a_name_as_long_as_a_request_costs_no_time() -> None:
    began = time.process_time()
    place_of("openai", "\n" * 30_000_000, "", "id", 1, 1700)
    assert time.process_time() - began < 0.5


def test_where_the_files_of_an_attempt_stand() -> None:
    id_ = "0198c0de-0000-7000-8000-00000000abcd"
    assert place_of("openai", "a/b", "/v1/x", id_, 2, 1700) == Place("openai", "a-b", f"1700-{id_}-2")
    first = place_of("openai", None, "/v1/models/x?key=secret", id_, 1, 1700)
    assert first == Place("openai", "passthrough", "1700-v1-models-x-abcd")
    second = place_of("openai", None, "/v1/models/x", id_, 2, 1700)
    assert second.stem.startswith("1700-v1-models-x-")
    assert len(second.stem) == len(first.stem)


def test_only_their_owner_reads_dumps(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "base"
    mask = os.umask(0)
    try:
        dump(DumpFiles(str(base), MIB), Place("p", "m", "1-a-1"))
    finally:
        os.umask(mask)
    for path in (base, base / "p", base / "p" / "m"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (base / "p" / "m").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("link", ["p", "p/m"])
def test_a_link_in_the_directory_leads_nowhere(tmp_path: Path, link: str) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    outside.mkdir()
    (outside / "m").mkdir()
    (outside / "m" / "1-a-1.req.txt").write_text("not ours")
    (base / link).parent.mkdir(parents=True)
    (base / link).symlink_to(outside if link == "p" else outside / "m")
    files = DumpFiles(str(base), 0)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        dump(files, Place("p", "m", "2-b-1"))
    assert files.remove_oldest() == 0
    assert below(outside) == ["m/1-a-1.req.txt"]


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    place = Place("p", "m", "1-a-1")
    directory = tmp_path / "base" / "p" / "m"
    directory.mkdir(parents=True)
    (directory / "1-a-1.req.txt").symlink_to(outside)
    (directory / "1-a-1.resp.txt").write_text("kept")
    files = DumpFiles(str(tmp_path / "base"), MIB)
    for kind in (REQUEST, RESPONSE):
        with pytest.raises(FileExistsError):
            files.append(place, kind, b"new", new=True)
    with pytest.raises(OSError, match="symbolic links"):
        files.append(place, REQUEST, b"more", new=False)
    assert outside.read_text() == (directory / "1-a-1.resp.txt").read_text() == "kept"


def test_a_file_that_was_removed_is_not_begun_again(tmp_path: Path) -> None:
    files = DumpFiles(str(tmp_path / "base"), 0)
    place = Place("p", "m", "1-a-1")
    dump(files, place)
    assert files.remove_oldest() == 2
    with pytest.raises(FileNotFoundError):
        files.append(place, REQUEST, b"more", new=False)
    assert below(tmp_path) == []
    dump(files, place)  # its directory is gone too and is made again
    assert len(below(tmp_path)) == 2


# --- removal


def test_the_oldest_are_removed_until_an_eighth_of_the_limit_is_free(tmp_path: Path) -> None:
    files = DumpFiles(str(tmp_path), 100 * 4096)
    for at in range(60):
        place = place_of("openai", f"model-{at % 3}", "", f"id-{at % 7}", 1, 9_999_999 + at * 1000)  # more digits later
        dump(files, place, 4096)
    assert files.remove_oldest() == 120 - 87
    left = sorted(int(Path(name).name.partition("-")[0]) for name in below(tmp_path))
    assert left == sorted((9_999_999 + at * 1000) for at in range(60) for _ in range(2))[-87:]
    assert files.remove_oldest() == 0


def test_below_the_limit_nothing_is_removed(tmp_path: Path) -> None:
    files = DumpFiles(str(tmp_path), 100 * 4096)
    for at in range(50):
        dump(files, Place("p", "m", f"{at}-a-1"), 4096)
    assert files.remove_oldest() == 0


def test_what_is_not_ours_is_neither_counted_nor_removed(tmp_path: Path) -> None:
    theirs = [
        "notes.txt",
        "p/notes.txt",
        "p/m/notes.req.txt",
        "p/m/1-a.txt",
        "p/m/deeper/1-a-1.req.txt",
        "1-a-1.req.txt",
    ]
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 100_000)
    theirs.append("p/m/1-b-1.req.txt")
    (tmp_path / theirs[-1]).symlink_to(tmp_path / "notes.txt")
    files = DumpFiles(str(tmp_path), 50_000)
    dump(files, Place("p", "m", "3-a-1"))
    assert files.remove_oldest() == 0
    for at in range(10):
        dump(files, Place("p", "m", f"{at + 10}-a-1"), 4096)
    assert files.remove_oldest() > 0
    assert set(theirs) < set(below(tmp_path))


def test_empty_directories_of_models_go_with_their_last_dump(tmp_path: Path) -> None:
    files = DumpFiles(str(tmp_path), 0)
    for at in range(5):
        dump(files, Place("p", f"model-{at}", f"{at}-a-1"))
    assert files.remove_oldest() == 10
    assert list((tmp_path / "p").iterdir()) == []


def test_one_worker_at_a_time_removes(tmp_path: Path) -> None:
    files = DumpFiles(str(tmp_path), 0)
    dump(files, Place("p", "m", "1-a-1"))
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert files.remove_oldest() == 0
    assert files.remove_oldest() == 2


def test_a_look_is_due_after_a_part_of_the_limit_was_written(tmp_path: Path) -> None:
    files = DumpFiles(str(tmp_path), 32_000)
    assert not files.removal_due()
    dump(files, Place("p", "m", "1-a-1"), 501)
    assert files.removal_due()
    files.remove_oldest()
    assert not files.removal_due()


def test_a_directory_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    base = tmp_path / "base"
    files = DumpFiles(str(base), MIB)
    dump(files, Place("p", "m", "1-a-1"))
    shutil.rmtree(base)
    dump(files, Place("p", "m", "2-a-1"))
    assert len(below(base)) == 2
