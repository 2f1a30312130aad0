"""The set of providers that requests are served from. Immutable: a change is a new snapshot, swapped in atomically."""

from collections.abc import Iterable

from ostiary.core.providers import ProviderSpec

from .providers import RuntimeProvider, build_provider


class Snapshot:
    """`revision` is the control plane's number of this state."""

    __slots__ = ("providers", "revision")

    def __init__(self, revision: int, providers: dict[str, RuntimeProvider]) -> None:
        self.revision = revision
        self.providers = providers

    @property
    def errors(self) -> dict[str, str]:
        """Provider name → why it cannot be served."""
        return {name: provider.error for name, provider in self.providers.items() if provider.error}


def build_snapshot(revision: int, specs: Iterable[ProviderSpec], *, allow_byok: bool) -> Snapshot:
    return Snapshot(revision, {spec.name: build_provider(spec, allow_byok=allow_byok) for spec in specs})
