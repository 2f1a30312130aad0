"""Settings of an installation: where it listens, what it runs on, whose providers. Half of the table in `settings`."""

import os
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from ostiary.core.secret import Secret
from ostiary.runtime.plan import Address

from . import values
from .setting import Setting

GATEWAY_LISTEN: Final = Address("127.0.0.1", 4001)

_ADDRESSES = "Addresses"
_CONTROL = "Control plane of a gateway"
_PROCESS = "Processes"
_DATABASE = "Database and secrets"
_PROVIDERS = "Providers"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One worker a core, at most four: more is a decision about the machine."""
    return max(1, min(4, _cores()))


class InstallationSettings(BaseModel):
    """Of the machine and its processes."""

    listen: Annotated[
        Address,
        Setting(
            _ADDRESSES,
            values.listen(),
            "Where the gateway, the API and everything else is served.",
            migration=(("HTTP_ADDRESS", None),),
            migration_only="gateway",
            default_text=f"`127.0.0.1:4000`; of `ostiary gateway start` `{GATEWAY_LISTEN}`",
        ),
    ] = Address("127.0.0.1", 4000)
    metrics_listen: Annotated[
        Address | None,
        Setting(_ADDRESSES, values.listen(optional=True), "Where Prometheus finds `/metrics`; `off` for nowhere."),
    ] = Address("127.0.0.1", 2112)
    tls_cert_file: Annotated[
        Path | None,
        Setting(
            _ADDRESSES,
            values.readable_file(),
            "Certificate chain (PEM): with the key, `listen` speaks TLS.",
            migration=(("TLS_CERT_FILE", None),),
            migration_only="gateway",
        ),
    ] = None
    tls_key_file: Annotated[
        Path | None,
        Setting(
            _ADDRESSES,
            values.readable_file(),
            "Private key (PEM) of the certificate.",
            migration=(("TLS_KEY_FILE", None),),
            migration_only="gateway",
        ),
    ] = None
    client_ca_file: Annotated[
        Path | None,
        Setting(
            _ADDRESSES,
            values.readable_file(),
            "CA certificates (PEM): gateways must show a client certificate of one of them. "
            "Everybody else is asked for one and needs none.",
            only="server",
        ),
    ] = None

    control_url: Annotated[
        str,
        Setting(
            _CONTROL,
            values.server_url(),
            "The server that this gateway belongs to.",
            also=("CODER_URL",),
            only="gateway",
            flag_name="--url",
            default_text="none, required",
        ),
    ] = ""
    gateway_key: Annotated[
        Secret,
        Setting(
            _CONTROL,
            values.gateway_key(),
            "The key made by `ostiary gateway keys create`. A file or the variable keeps it out of argument lists.",
            migration=(("KEY", None),),
            only="gateway",
            flag_name="--key",
            default_text="none; this or `gateway_key_file` is required",
        ),
    ] = Secret("")
    gateway_key_file: Annotated[
        Path | None,
        Setting(
            _CONTROL,
            values.readable_file(),
            "A file with that key alone in it.",
            migration=(("KEY_FILE", None),),
            only="gateway",
            flag_name="--key-file",
        ),
    ] = None
    control_ca_file: Annotated[
        Path | None,
        Setting(
            _CONTROL,
            values.readable_file(),
            "CA certificates (PEM) by which the server is trusted, beside the system's.",
            only="gateway",
        ),
    ] = None
    control_cert_file: Annotated[
        Path | None,
        Setting(
            _CONTROL,
            values.readable_file(),
            "Client certificate (PEM) to show to the server.",
            only="gateway",
        ),
    ] = None
    control_key_file: Annotated[
        Path | None,
        Setting(_CONTROL, values.readable_file(), "Private key (PEM) of the client certificate.", only="gateway"),
    ] = None

    data_dir: Annotated[
        Path,
        Setting(
            _PROCESS,
            values.directory(),
            "Journal, embedded database, vault key and owner token live here; a gateway keeps its journal and what it "
            "last knew.",
            default_text="`/var/lib/ostiary` for root, else `$XDG_DATA_HOME/ostiary` or `~/.local/share/ostiary`; "
            "of `ostiary gateway start` `ostiary-gateway` in the same place",
        ),
    ]
    workers: Annotated[
        int,
        Setting(
            _PROCESS,
            values.integer(1, 256),
            "Gateway processes that share the listening address.",
            default_text="one a core, at most 4",
        ),
    ] = Field(default_factory=default_workers)
    drain_timeout: Annotated[
        float,
        Setting(
            _PROCESS,
            values.duration("0s", "1d"),
            "How long a stop waits for streams in flight before it cuts them.",
        ),
    ] = 300.0
    hang_timeout: Annotated[
        float,
        Setting(
            _PROCESS,
            values.duration_or_zero("1s", "1d"),
            "How long a process may give no sign of life before it is killed and started again. `0`: for ever, e.g. "
            "to stop one in a debugger.",
        ),
    ] = 60.0
    demo: Annotated[
        bool,
        Setting(
            _PROCESS,
            values.boolean(),
            "Also start a fake provider and register it as `demo-openai` and `demo-anthropic`.",
            only="server",
        ),
    ] = False
    fake_listen: Annotated[
        Address,
        Setting(
            _PROCESS,
            values.listen(),
            "Where the fake provider of `demo` listens; at any free port when that one is taken.",
            only="server",
        ),
    ] = Address("127.0.0.1", 4010)

    database_url: Annotated[
        Secret,
        Setting(
            _DATABASE,
            values.database_url(),
            "PostgreSQL 14 or newer. Without it the server runs one of its own in the data directory.",
            default_text="embedded",
            only="server",
        ),
    ] = Secret("")
    database_listen_url: Annotated[
        Secret,
        Setting(
            _DATABASE,
            values.database_url(),
            "The same database without a connection pooler in between, to be told of changes (`LISTEN`): "
            "a pooler in transaction mode passes none on.",
            default_text="`database_url`",
            only="server",
        ),
    ] = Secret("")
    encryption_keys: Annotated[
        tuple[Secret, ...],
        Setting(
            _DATABASE,
            values.vault_keys(),
            "Keys that encrypt provider keys at rest: 32 bytes each in base64, the current one first. "
            "Required with `database_url`.",
            flag=False,
            default_text="a key file made on first start, with the embedded database",
            only="server",
        ),
    ] = ()
    bootstrap_token: Annotated[
        Secret,
        Setting(
            _DATABASE,
            values.bootstrap_token(),
            "Token of the owner `admin`, 32 characters or more, valid from each start on in place of the one before.",
            flag=False,
            default_text="made on first start, written to `<data-dir>/owner-token`",
            only="server",
        ),
    ] = Secret("")

    on_drift: Annotated[
        Literal["fail", "warn"],
        Setting(
            _PROVIDERS,
            values.choice("fail", "warn"),
            "What to do when a provider of the environment differs from its row in the database.",
            only="server",
        ),
    ] = "fail"
    allow_byok: Annotated[
        bool,
        Setting(
            _PROVIDERS,
            values.boolean(),
            "Whether people may bring their own provider credential.",
            migration=(("ALLOW_BYOK", None),),
        ),
    ] = True
