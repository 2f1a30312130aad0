import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostiary.core.agents import AgentFirewall, AgentFirewallError, agent_firewall, detect_client, session_id

SESSION = b"x-coder-agent-firewall-session-id"
NUMBER = b"x-coder-agent-firewall-sequence-number"
A_UUID = b"0192f0c1-2345-7abc-8def-0123456789AB"


@pytest.mark.parametrize(
    ("agent", "client"),
    [
        ("xum/1.0", "Xum"),
        ("Mux/0.3", "Xum"),
        ("claude-cli/2.0.67 (external, cli)", "Claude Code"),
        ("Claude-User", "Claude Code"),
        ("codex_cli_rs/0.87.0 (Mac OS 26.2.0; arm64)", "Codex"),
        ("Zed/0.219.4+stable", "Zed"),
        ("GitHubCopilotChat/0.37.2026", "GitHub Copilot (VS Code)"),
        ("copilot/0.0.403 (client/cli linux)", "GitHub Copilot (CLI)"),
        ("Kilo-Code/5.1.0", "Kilo Code"),
        ("kilo-codex", ""),
        ("Roo-Code/3.4", "Roo Code"),
        ("coder-agents/v2.24", "Coder Agents"),
        ("Charm Crush/0.1.11", "Charm Crush"),
        ("charm-crush/0.2", "Charm Crush"),
        ("opencode/1.0", "OpenCode"),
        ("junie:cli", "Junie"),
        ("OpenAI/Python 2.1", ""),
        (" ", ""),
        ("not claude", ""),
    ],
)
def test_clients_are_told_by_the_beginning_of_their_user_agent(agent: str, client: str) -> None:
    assert detect_client({b"user-agent": agent.encode()}) == client


def test_some_clients_are_told_by_another_field() -> None:
    generic = {b"user-agent": b"openai/js 5.0"}
    assert detect_client(generic | {b"originator": b"Kilo-Code"}) == "Kilo Code"
    assert detect_client(generic | {b"originator": b"roo-code"}) == "Roo Code"
    assert detect_client(generic | {b"originator": b""}) == ""
    assert detect_client(generic | {b"x-cursor-client-version": b"2.4"}) == "Cursor"
    assert detect_client(generic | {b"x-cursor-client-version": b" "}) == ""
    assert detect_client({}) == ""


def test_the_first_match_counts() -> None:
    assert detect_client({b"user-agent": b"claude-cli/2", b"originator": b"kilo-code"}) == "Claude Code"
    assert detect_client({b"user-agent": b"opencode/1", b"originator": b"kilo-code"}) == "Kilo Code"
    assert detect_client({b"user-agent": b"opencode/1", b"x-cursor-client-version": b"2"}) == "Cursor"


@pytest.mark.parametrize(
    ("client", "field"),
    [
        ("Claude Code", b"x-claude-code-session-id"),
        ("Codex", b"session-id"),
        ("Codex", b"session_id"),
        ("Xum", b"x-mux-workspace-id"),
        ("GitHub Copilot (VS Code)", b"x-interaction-id"),
        ("GitHub Copilot (CLI)", b"x-client-session-id"),
        ("Kilo Code", b"x-kilocode-taskid"),
        ("Coder Agents", b"x-coder-chat-id"),
        ("OpenCode", b"x-opencode-session"),
        ("OpenCode", b"x-session-affinity"),
    ],
)
def test_each_client_has_its_session_field(client: str, field: bytes) -> None:
    assert session_id(client, {field: b" abc "}) == "abc"
    assert session_id(client, {field: b"  "}) == ""
    for other in ("Zed", "Roo Code", "Cursor", "Charm Crush", "Junie", ""):
        assert session_id(other, {field: b"abc"}) == ""


def test_the_newer_field_goes_first_and_a_blank_one_gives_way() -> None:
    assert session_id("Codex", {b"session-id": b"new", b"session_id": b"old"}) == "new"
    assert session_id("Codex", {b"session-id": b" ", b"session_id": b"old"}) == "old"


@pytest.mark.parametrize(
    ("user_id", "session"),
    [
        ("user_1a2b_account__session_01234567-89ab", "01234567-89ab"),
        ("user_1_account_2_session_ x ", "x"),
        (json.dumps({"device_id": "d", "session_id": " s-1 "}), "s-1"),
        (json.dumps({"device_id": "d"}), ""),
        (json.dumps({"session_id": 7, "x": "_session_y"}), 'y"}'),
        ('{"session_id": broken_session_z', "z"),
        ("user_1", ""),
        ("", ""),
        ("x_session_a\0b", ""),
    ],
)
def test_claude_codes_user_id_names_its_session(user_id: str, session: str) -> None:
    assert session_id("Claude Code", {}, user_id) == session
    assert session_id("Claude Code", {b"x-claude-code-session-id": b"header"}, user_id) == "header"
    assert session_id("Zed", {}, user_id) == ""


@given(st.text(max_size=600), st.binary(max_size=600))
def test_session_ids_are_bounded_and_never_raise(user_id: str, value: bytes) -> None:
    assert len(session_id("Claude Code", {}, user_id)) <= 256
    assert len(session_id("Codex", {b"session_id": value})) <= 256


# --- agent firewall


def test_both_agent_firewall_fields_or_neither() -> None:
    assert agent_firewall({}) is None
    found = agent_firewall({SESSION: A_UUID, NUMBER: b"2147483647"})
    assert found == AgentFirewall("0192f0c1-2345-7abc-8def-0123456789ab", 2147483647)


@pytest.mark.parametrize(
    "fields",
    [
        {SESSION: A_UUID},
        {NUMBER: b"1"},
        {SESSION: b"not-a-uuid", NUMBER: b"1"},
        {SESSION: b"{" + A_UUID + b"}", NUMBER: b"1"},
        {SESSION: A_UUID, NUMBER: b"-1"},
        {SESSION: A_UUID, NUMBER: b"2147483648"},
        {SESSION: A_UUID, NUMBER: b"1.0"},
        {SESSION: A_UUID, NUMBER: "٣".encode()},
        {SESSION: A_UUID + b", " + A_UUID, NUMBER: b"1"},
    ],
)
def test_other_agent_firewall_fields_are_refused(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(AgentFirewallError, match="invalid agent firewall headers"):
        agent_firewall(fields)
