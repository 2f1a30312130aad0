"""link/cache.py: what is on the disk, and what is made of a disk that somebody has been at."""

import asyncio
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostiary.core.identity import Identity
from ostiary.core.messages import Snapshot
from ostiary.core.providers import ProviderKey, ProviderSpec
from ostiary.core.secret import Secret
from ostiary.link import cache as cache_module
from ostiary.link.authorizations import Memory
from ostiary.link.cache import Cache, CacheKeeper, KnownToken

KEY = Secret("k" * 43)
URL = "https://ostiary.example"
PROVIDER_KEY = "sk-never-in-clear-0123456789"
SNAPSHOT = Snapshot(
    7, (ProviderSpec("id", "openai", "openai", True, "https://h/v1", (ProviderKey("k", Secret(PROVIDER_KEY)),)),)
)
ALICE = Identity("owner", "token", "alice", "alice@example.com", "member", 0)
TOKENS = [KnownToken(b"s" * 32, ALICE, 1_700_000_000.5)]


def filled(directory: Path) -> Cache:
    cache = Cache(directory / "link", KEY, URL)
    cache.write_snapshot(SNAPSHOT)
    cache.write_tokens(TOKENS)
    return cache


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Cache(tmp_path / "link", KEY, URL)
    assert (again.read_snapshot(), again.read_tokens()) == (SNAPSHOT, TOKENS)


def test_nothing_was_written_yet(tmp_path: Path) -> None:
    empty = Cache(tmp_path / "link", KEY, URL)
    assert (empty.read_snapshot(), empty.read_tokens()) == (None, [])


def test_nothing_on_disk_can_be_read_without_the_key(tmp_path: Path) -> None:
    filled(tmp_path)
    files = sorted((tmp_path / "link").iterdir())
    assert [path.name for path in files] == ["snapshot", "tokens"]
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = path.read_bytes()
        for word in (PROVIDER_KEY, "alice", "openai", "owner", KEY.reveal()):
            assert word.encode() not in content
    assert stat.S_IMODE((tmp_path / "link").stat().st_mode) == 0o700


@pytest.mark.parametrize(("key", "url"), [(Secret("x" * 43), URL), (KEY, "https://other.example")])
def test_a_cache_of_another_key_or_server_is_ignored_with_a_warning(
    key: Secret, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path)
    foreign = Cache(tmp_path / "link", key, url)
    assert (foreign.read_snapshot(), foreign.read_tokens()) == (None, [])
    assert capsys.readouterr().out.count("ignoring a cache") == 2


def test_one_file_in_place_of_the_other_is_ignored(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    (tmp_path / "link" / "tokens").write_bytes((tmp_path / "link" / "snapshot").read_bytes())
    assert cache.read_tokens() == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), flip=st.integers(0, 10_000))
def test_a_half_written_or_changed_file_is_ignored(
    cut: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("cache")
    cache = filled(directory)
    path = directory / "link" / "snapshot"
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    assert cache.read_snapshot() is None
    changed = bytearray(whole)
    changed[flip % len(whole)] ^= 1
    path.write_bytes(changed)
    assert cache.read_snapshot() is None
    path.write_bytes(whole)
    assert cache.read_snapshot() == SNAPSHOT


def test_a_write_that_was_cut_leaves_the_old_content_and_is_cleaned_up(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    (tmp_path / "link" / ".snapshot.0123456789abcdef").write_bytes(b"half")
    assert cache.read_snapshot() == SNAPSHOT
    cache.write_snapshot(SNAPSHOT)
    assert sorted(path.name for path in (tmp_path / "link").iterdir()) == ["snapshot", "tokens"]


def test_a_disk_that_takes_nothing_is_told_and_not_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").write_text("a file where the directory should be")
    Cache(tmp_path / "link", KEY, URL).write_snapshot(SNAPSHOT)
    assert "caching what the control plane said later" in capsys.readouterr().out


def test_a_wiped_cache_is_gone_and_stays_empty(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    cache.wipe()
    cache.write_snapshot(SNAPSHOT)
    assert list((tmp_path / "link").iterdir()) == []


def test_the_same_content_is_never_encrypted_alike(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    first = (tmp_path / "link" / "snapshot").read_bytes()
    cache.write_snapshot(SNAPSHOT)
    assert (tmp_path / "link" / "snapshot").read_bytes() != first


def test_the_keeper_writes_who_came_soon_and_who_was_confirmed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LOOK_INTERVAL", 0.005)
    monkeypatch.setattr(cache_module, "REFRESH_INTERVAL", 0.2)
    cache = Cache(tmp_path / "link", KEY, URL)
    tokens: list[KnownToken] = []
    counts = {"changes": 0, "confirmations": 0}
    keeper = CacheKeeper(
        cache,
        tokens=lambda: list(tokens),
        changes=lambda: counts["changes"],
        confirmations=lambda: counts["confirmations"],
    )

    async def written(wanted: object) -> None:
        async with asyncio.timeout(5):
            while (cache.read_snapshot(), cache.read_tokens()) != wanted:
                await asyncio.sleep(0.005)

    async def script() -> None:
        running = asyncio.create_task(keeper.run())
        keeper.take(SNAPSHOT)
        await written((SNAPSHOT, []))
        tokens[:] = TOKENS
        counts["changes"] += 1
        await written((SNAPSHOT, TOKENS))
        inode = (tmp_path / "link" / "snapshot").stat().st_ino
        tokens[:] = [KnownToken(b"s" * 32, ALICE, 1_700_000_060.5)]
        counts["confirmations"] += 1
        await written((SNAPSHOT, tokens))
        assert (tmp_path / "link" / "snapshot").stat().st_ino == inode, "unchanged, so not written again"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(script())


def test_only_those_whom_the_grace_still_lets_in_are_restored() -> None:
    now, wall = 500.0, 1_700_000_000.0
    memory = Memory(lambda: now, lambda: wall, 60.0, 3600.0)

    def token(name: str, age: float, expires_at: int = 0) -> KnownToken:
        identity = Identity("owner", name, "alice", "", "member", expires_at)
        return KnownToken(name.encode(), identity, wall - age)

    memory.restore(
        [token("recent", 1800), token("old", 3601), token("expired", 10, int(wall) - 1), token("ahead", -999)]
    )
    answers = {name: memory.within_grace(name) for name in (b"recent", b"old", b"expired", b"ahead")}
    assert {name for name, answer in answers.items() if answer} == {b"recent", b"ahead"}
    recent = answers[b"recent"]
    assert recent is not None
    assert recent.age == 1800
    assert memory.fresh(b"recent") is None, "asked for again as soon as somebody can be asked"
    assert [kept.confirmed_at for kept in memory.kept()] == [wall - 1800, wall], (
        "a clock that was set back adds nothing"
    )
