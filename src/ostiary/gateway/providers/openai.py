"""Everything that speaks OpenAI's format. The base URL carries the version, so `/v1` of our path is cut (reference D.1).

What is served: platform.openai.com, "API reference". What generates or takes data in is bridged or metered, so that it
has a record; what only reads, lists or deletes is passed through.

Azure has two shapes of paths, and clients of both are served whatever the base URL ends in: `/openai/v1/…` (and our own
`/v1/…`) are joined to the base URL, `/openai/…` without a version and `/openai/deployments/NAME/…` are what Azure's SDK
sends, and go to the resource's root as they are.
"""

import re
from typing import Final
from urllib.parse import unquote

from ostiary.core.providers import OpenAISettings, ProviderSpec, ProviderType
from ostiary.gateway.routes import Route, RouteTable

from .base import RuntimeProvider, keyed, metered, passthrough

_SERVED: Final = (
    Route("/v1/chat/completions", "bridged", "chat_completions"),
    Route("/v1/responses", "bridged", "responses"),
    metered("/v1/responses/compact", model_optional=True),
    metered("/v1/completions"),
    metered("/v1/embeddings"),
    metered("/v1/moderations", model_optional=True),
    metered("/v1/images/generations", model_optional=True),
    # Forms: their model is a part that may stand behind a long file, so it is not asked for.
    metered("/v1/images/edits", upload=True),
    metered("/v1/images/variations", upload=True),
    metered("/v1/images/*", upload=True),
    metered("/v1/audio/speech"),
    metered("/v1/audio/transcriptions", upload=True),
    metered("/v1/audio/translations", upload=True),
    metered("/v1/audio/*", upload=True),
    metered("/v1/files", upload=True),
    metered("/v1/uploads", model_optional=True),
    metered("/v1/uploads/*", upload=True),
    metered("/v1/batches", model_optional=True),
    *passthrough("/v1/files/*", "/v1/batches/*"),
    *passthrough("/v1/responses/*", "/v1/conversations", "/v1/conversations/*", "/v1/models", "/v1/models/*"),
)
_ROUTES: Final = RouteTable(*_SERVED)
_DEPLOYMENT: Final = re.compile(rb"/openai/deployments/([^/]+)/")
_NAME_MAX: Final = 256
_AZURE_ROUTES: Final = RouteTable(*_SERVED, prefixes=re.compile(rb"/openai(?:/v1|/deployments/[^/]+)?(?=/)"))


class AzureProvider(RuntimeProvider):
    """See the module's docstring; and every request names an `api-version` when one is configured."""

    __slots__ = ("_api_version", "_root")

    def __init__(self, spec: ProviderSpec, settings: OpenAISettings, *, allow_byok: bool, splice_usage: bool) -> None:
        super().__init__(
            spec,
            "openai",
            _AZURE_ROUTES,
            strip=b"/v1",
            keys=keyed(spec, b"Api-Key: ", allow_byok=allow_byok),
            splice_usage=splice_usage,
            selection=settings.selection,
        )
        self._api_version = b"api-version=" + settings.api_version.encode("ascii") if settings.api_version else b""
        self._root = re.sub(rb"/openai(?:/.*)?$", b"", self.base_path)

    def upstream_path(self, rest: bytes) -> bytes:
        if rest.startswith(b"/openai/v1/"):
            return super().upstream_path(rest.removeprefix(b"/openai"))
        return self._root + rest if rest.startswith(b"/openai/") else super().upstream_path(rest)

    def model_of(self, rest: bytes) -> str:
        """A deployment: what it runs is not told, so it is known by its own name."""
        found = _DEPLOYMENT.match(rest)
        return unquote(found[1].decode("ascii"))[:_NAME_MAX] if found is not None else ""

    def upstream_query(self, query: bytes) -> bytes:
        """The base URL's query, the request's, and the configured version where neither of them names one."""
        asked, given = _names_version(query), _names_version(self.base_query)
        if asked and given:
            return query  # the base URL's would be a second one
        joined = super().upstream_query(query)
        if asked or given or not self._api_version:
            return joined
        return joined + b"&" + self._api_version if len(joined) > 1 else b"?" + self._api_version


def _names_version(query: bytes) -> bool:
    return any(part.partition(b"=")[0].lower() == b"api-version" for part in query[1:].split(b"&"))


def build_openai(spec: ProviderSpec, kind: ProviderType, *, allow_byok: bool) -> RuntimeProvider:
    settings = spec.settings if isinstance(spec.settings, OpenAISettings) else OpenAISettings()
    stream_usage = settings.stream_usage or ("leave" if kind is ProviderType.OPENAI_COMPAT else "splice")
    splice_usage = stream_usage == "splice"
    if kind is ProviderType.AZURE:
        return AzureProvider(spec, settings, allow_byok=allow_byok, splice_usage=splice_usage)
    return RuntimeProvider(
        spec,
        "openai",
        _ROUTES,
        strip=b"/v1",
        keys=keyed(spec, b"Authorization: Bearer ", allow_byok=allow_byok),
        splice_usage=splice_usage,
        selection=settings.selection,
    )
