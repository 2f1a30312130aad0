"""`ostiary doctor`: is everything in order, and if not, what is to be done.

`findings`     what a check gives
`examination`  runs checks side by side, within a time
`server`       the server, clocks, database, partitions, journals, vault
`providers`    keys, and calls through the gateway
`gateways`     what gateways report: links, revisions, keys, breakers, and whether their records arrive
`certificates` until when they hold
`machine`      files, room and limits of the machine it runs on, and its settings
`report`       how it is shown

A check is a function from what the server (or the machine) says to findings, so that each can be tried on facts alone.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ostiary.cli._app import new_app
from ostiary.cli.client import Client, is_local
from ostiary.cli.failure import Failure
from ostiary.cli.output import AsJson

from . import certificates, gateways, machine, providers, report, server
from .examination import Check, examine, in_order
from .findings import Finding, Group, Status

app = new_app()

SECONDS = 60


@app.command()
def doctor(
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROVIDER/MODEL", help="Also make a short real call of this model, which costs little; repeatable."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The data directory of a server or gateway on this machine. [default: the setting's]"
        ),
    ] = None,
    within: Annotated[int, typer.Option(metavar="SECONDS", min=5, max=600, help="How long it may take.")] = SECONDS,
    as_json: AsJson = False,
) -> int:
    """Check a running installation end to end: one line a finding, with what to do about it.

    It asks the server as an owner or admin (OSTIARY_URL, OSTIARY_TOKEN or
    `ostiary login`): every provider with every key, a call through the
    gateway, clocks, database, partitions, gateways, journals, certificates.
    On the server's own machine, as the server's user, it also looks at files,
    limits, room and settings. It changes nothing. Calls cost nothing, unless
    --call names a model.

    Exit status 1 when something is wrong. Warnings, and what could not be
    checked (??), are shown and leave it at 0.

    Examples:

      ostiary doctor
      ostiary doctor --call openai/gpt-5.4-mini
      sudo ostiary doctor --data-dir /var/lib/ostiary
      OSTIARY_URL=https://ai.example.com OSTIARY_TOKEN=ost_... ostiary doctor --json
    """
    deadline = time.monotonic() + within
    calls = [providers.parse_call(text) for text in call or []]
    with Client.here() as client:
        try:
            findings = _examine(client, calls, data_dir, deadline)
        finally:
            report.progress("")
        if as_json:
            report.print_as_json(client.place.url, findings)
        else:
            report.print_report(client.place.url, findings)
    return 1 if any(finding.status is Status.WRONG for finding in findings) else 0


def _examine(client: Client, calls: list[tuple[str, str]], data_dir: Path | None, deadline: float) -> list[Finding]:
    report.progress(f"asking {client.place.url}")
    reached = server.Reached(client)
    here = data_dir is not None or is_local(client.place.url) or _of_gateway()
    checks = [Check("certificates", "the server's certificate", lambda: certificates.listener(client.place.url))]
    if reached.usable:
        checks += _remote(client, calls)
    else:
        reason = "not checked: the server has to answer first"
        reached.findings += [Group(name).unchecked(reason) for name in ("providers", "gateways", "records")]
    if here:
        checks.append(Check("machine", "this machine", lambda: _machine(client, data_dir, ask=reached.usable)))
    else:
        text = "files, limits, room and settings of the server's machine are not looked at from here"
        reached.findings.append(Group("machine").unchecked(text, "run doctor there as the server's user"))
    return in_order([*reached.findings, *examine(checks, deadline, report.progress)])


def _remote(client: Client, calls: list[tuple[str, str]]) -> list[Check]:
    """What is asked of a server that answers."""
    checks = [
        Check("database", "database", lambda: server.diagnosis(client)),
        Check("database", "vault", lambda: server.vault(client)),
        Check("gateways", "gateways", lambda: gateways.check(client)),
        Check("certificates", "certificates of providers", lambda: certificates.endpoints(client)),
    ]
    try:
        configured = client.get("/api/v2/ai/providers")
    except Failure as failure:
        message = failure.message
        return [*checks, Check("providers", "providers", lambda: [Group("providers").unchecked(message)])]
    if not configured:
        cure = "ostiary providers add NAME --type TYPE --key-file FILE"
        return [*checks, Check("providers", "providers", lambda: [Group("providers").warning("there are none", cure)])]
    checks += [_of_provider(client, provider) for provider in configured]
    for name, model in (*providers.demo_calls(configured), *calls):
        checks.append(_of_call(client, configured, name, model))
    return checks


def _of_gateway() -> bool:
    """Whether this environment is that of `ostiary gateway start`."""
    return any(
        os.environ.get(name) for name in ("OSTIARY_CONTROL_URL", "OSTIARY_GATEWAY_KEY", "OSTIARY_GATEWAY_KEY_FILE")
    )


def _of_provider(client: Client, provider: dict[str, Any]) -> Check:
    return Check("providers", provider["name"], lambda: providers.check(client, provider))


def _of_call(client: Client, configured: list[dict[str, Any]], name: str, model: str) -> Check:
    return Check("traffic", f"a call of {name}", lambda: providers.call(client, configured, name, model))


def _machine(client: Client, data_dir: Path | None, *, ask: bool) -> Iterator[Finding]:
    loaded, found = machine.settings(os.environ, "gateway" if _of_gateway() else "server")
    yield from found
    directory = data_dir or (loaded.settings.data_dir if loaded else None)
    if directory is None:
        yield Group("machine").unchecked("the settings do not say where the data directory is", "--data-dir DIR")
        return
    reports = (lambda replica_id: gateways.reports(client, replica_id)) if ask else None
    yield from machine.directory(directory.absolute(), loaded, reports)
