"""What the supervisor is asked to run: data only, checked already.

`ostiary server` gives a plan with `control`; `ostiary gateway start` one without it, so that there is no database and
no control plane. What is known only once sockets are bound and secrets are drawn is filled in by the supervisor:

    with `control`    `gateway.control_url`, `gateway.front_door_secret`, `gateway.mode`, `link.control_url`,
                      `link.gateway_key`, `control.gateway_key`, `control.front_door_secret`
                      `control.database_url` when `control.embedded_database`
                      `control.public_url` when empty: the address that is listened on
    with `fake` too   `control.demo_providers`, which point at the fake provider's address

Without `control` all settings are taken as they are.
"""

from collections.abc import Callable, Mapping
from typing import Self

import msgspec
from msgspec import Struct

from ostiary.core.messages import ChildKind
from ostiary.core.secret import Secret
from ostiary.core.settings import (
    ControlSettings,
    DemoProvider,
    FakeSettings,
    GatewaySettings,
    LinkSettings,
    LogSettings,
)

ENTRIES: Mapping[ChildKind, str] = {
    "worker": "ostiary.gateway.process:run",
    "link": "ostiary.link.process:run",
    "control": "ostiary.control.process:run",
    "fake": "ostiary.fake.process:run",
}
"""The entry of each kind of child, `async def run(boot, fd, supervision) -> int` (`core.supervision`)."""


class Address(Struct, frozen=True):
    """A TCP address to listen on. Port 0: any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`HOST:PORT` or `[IPV6]:PORT`. Raises `ValueError` with what is wrong."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed:
            host = host[1:-1]
        if not colon or not host or (":" in host) != bracketed:
            raise ValueError(f"{text!r} is not HOST:PORT; an IPv6 address goes in brackets, as in [::1]:4000")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(f"{text!r} has no port between 0 and 65535 after its last colon")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class FakePlan(Struct, frozen=True):
    """The fake provider of `--demo`."""

    listen: Address = Address("127.0.0.1", 4010)
    """Where another program has it, any free port of that host is taken."""
    settings: FakeSettings = FakeSettings()


class ServerPlan(Struct, frozen=True, kw_only=True):
    data_dir: str
    listen: Address
    """The public address, shared by all workers."""
    workers: int
    gateway: GatewaySettings
    link: LinkSettings
    metrics_listen: Address | None = None
    control: ControlSettings | None = None
    fake: FakePlan | None = None
    hang_timeout: float = 60.0
    """Seconds; 0: children are not asked whether they hang."""
    log: LogSettings = LogSettings()
    """The supervisor's own; the children have theirs in their settings."""


def completed(plan: ServerPlan, *, control_port: int, fake: Address | None, draw: Callable[[], str]) -> ServerPlan:
    """`plan` with what this start has brought: the control plane's port, the secrets of this start (`draw` gives
    one), the address of the fake provider. `control.database_url` follows later."""
    if plan.control is None:
        return plan
    control_url = f"http://127.0.0.1:{control_port}"
    front_door_secret, gateway_key = Secret(draw()), Secret(draw())
    replace = msgspec.structs.replace
    return replace(
        plan,
        gateway=replace(plan.gateway, mode="embedded", control_url=control_url, front_door_secret=front_door_secret),
        link=replace(plan.link, control_url=control_url, gateway_key=gateway_key),
        control=replace(
            plan.control,
            gateway_key=gateway_key,
            front_door_secret=front_door_secret,
            public_url=plan.control.public_url or public_url(plan),
            demo_providers=demo_providers(fake) if fake else (),
        ),
    )


def public_url(plan: ServerPlan) -> str:
    """Where people of this machine reach the server."""
    listen = plan.listen
    if listen.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        listen = Address("127.0.0.1" if listen.host == "0.0.0.0" else "::1", listen.port)  # noqa: S104
    return f"{'https' if plan.gateway.tls else 'http'}://{listen}"


def demo_providers(fake: Address) -> tuple[DemoProvider, ...]:
    """The fake provider, once as OpenAI and once as Anthropic. It takes any key."""
    key = Secret("sk-demo-only-for-the-fake-provider")
    return (
        DemoProvider("demo-openai", "openai", f"http://{fake}/v1", key),
        DemoProvider("demo-anthropic", "anthropic", f"http://{fake}", key),
    )
