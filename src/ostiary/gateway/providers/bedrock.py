"""Claude on AWS Bedrock (reference E.1 to E.4): requests signed by the gateway, in either of two protocols.

invoke-model   Messages rewritten for `bedrock-runtime`, whose event streams and errors are written as Anthropic's
mantle         Messages, Chat Completions and Responses as they are, on `bedrock-mantle`

Rules
- Nothing is fetched when a provider is built: what its settings lack is found, what AWS refuses is not.
- What AWS would take for its own header fields is not sent on: it is signed by us or not at all.
- A person's own Bedrock API key goes as a bearer token, unsigned.
"""

from typing import Final, Literal
from urllib.parse import quote

import msgspec

from ostiary.core.provider_rules import DEFAULT_BASE_URLS, bedrock_region_of
from ostiary.core.providers import BedrockSettings, ProviderSpec, ProviderType
from ostiary.gateway.routes import Route, RouteTable
from ostiary.http1.head import ResponseHead
from ostiary.http1.origin import Origin, split_base_url
from ostiary.wire.bedrock import MessagesStream, beta_flags, error_answer, invoke_body, mapped_model
from ostiary.wire.bedrock.answer import SSE_TYPE
from ostiary.wire.event_stream import CONTENT_TYPE, EventStreamError
from ostiary.wire.facts import RequestFacts

from . import aws, inference_profiles
from .adapter import AdapterError, Prepared, Transform, TransformError
from .base import BuildError, RuntimeProvider, passthrough

_INVOKE_ROUTES: Final = RouteTable(
    Route("/v1/messages", "bridged", "messages"),
    *passthrough("/v1/messages/count_tokens", "/v1/models", "/v1/models/*"),
)
_MANTLE_ROUTES: Final = RouteTable(
    Route("/v1/messages", "bridged", "messages"),
    Route("/v1/chat/completions", "bridged", "chat_completions"),
    Route("/v1/responses", "bridged", "responses"),
    *passthrough("/v1/messages/count_tokens", "/v1/models"),
)
_MANTLE_SUFFIXES: Final = (b"/anthropic/v1", b"/openai/v1", b"/anthropic", b"/openai")
_MANTLE_PREFIXES: Final = (("anthropic.", b"/anthropic/v1"), ("openai.", b"/openai/v1"))
"""By the beginning of a model's id; all others are below /v1."""

_ANTHROPIC_URL: Final = DEFAULT_BASE_URLS[ProviderType.ANTHROPIC].rstrip("/")
"""What a row of type anthropic has by default, from before it got settings for Bedrock: nothing of AWS is there."""

_AWS_FIELDS: Final = (b"x-amz-", b"x-amzn-", b"amz-sdk-")
_REFUSED_CREDENTIALS: Final = (b"ExpiredToken", b"UnrecognizedClient", b"InvalidClientTokenId")
_MAX_ERROR: Final = 64 * 1024


def build_bedrock(
    spec: ProviderSpec,
    *,
    allow_byok: bool,  # noqa: ARG001 - the same as of the other kinds
    identities: aws.Identities = aws.SHARED,
    profiles: inference_profiles.InferenceProfiles = inference_profiles.SHARED,
) -> RuntimeProvider:
    """Raises `BuildError` naming the setting that is missing. A bring-your-own-key request needs no AWS identity."""
    settings = spec.settings
    if not isinstance(settings, BedrockSettings) or not settings.configured:
        raise BuildError("no bedrock credentials configured: set a region, a role or an access key in its settings")
    if bool(settings.access_key) != bool(settings.access_key_secret):
        lacking = "access_key_secret" if settings.access_key else "access_key"
        raise BuildError(f"both access key and access key secret must be provided together: {lacking} is not set")
    if spec.base_url.rstrip("/") == _ANTHROPIC_URL:
        spec = msgspec.structs.replace(spec, base_url="")
    if settings.protocol == "mantle":
        return _mantle(spec, settings, identities)
    if settings.protocol not in ("", "invoke-model"):
        raise BuildError(f'unknown bedrock protocol: "{settings.protocol}"; there are invoke-model and mantle')
    return _invoke_model(spec, settings, identities, profiles)


def _invoke_model(
    spec: ProviderSpec,
    settings: BedrockSettings,
    identities: aws.Identities,
    profiles: inference_profiles.InferenceProfiles,
) -> RuntimeProvider:
    if not settings.region and not spec.base_url:
        raise BuildError("region or base url required: set `region` in its settings, e.g. us-east-1")
    for name in settings.lacking:
        said = name.replace("_", " ")
        raise BuildError(f"{said} required: set `{name}` in its settings to the id of a model on Bedrock")
    china = ".cn" if settings.region.startswith("cn-") else ""
    base_url = spec.base_url or f"https://bedrock-runtime.{settings.region}.amazonaws.com{china}"
    origin, path, query = _split(base_url)
    signer = _Signer(settings, base_url, "bedrock", origin, identities)
    adapter = InvokeModelAdapter(settings, signer, profiles, path.encode("ascii"), query.encode("ascii"))
    located = msgspec.structs.replace(spec, base_url=base_url)
    return RuntimeProvider(located, "anthropic", _INVOKE_ROUTES, adapter=adapter)


def _mantle(spec: ProviderSpec, settings: BedrockSettings, identities: aws.Identities) -> RuntimeProvider:
    if not settings.region:
        raise BuildError("region required: set `region` in its settings; with protocol mantle it is signed")
    if not spec.base_url:
        example = f"https://bedrock-mantle.{settings.region}.api.aws/anthropic"
        raise BuildError(f"base_url required with protocol mantle, e.g. {example}")
    origin, path, query = _split(spec.base_url)
    signer = _Signer(settings, spec.base_url, "bedrock-mantle", origin, identities)
    adapter = MantleAdapter(signer, path.encode("ascii"), query.encode("ascii"))
    return RuntimeProvider(spec, "anthropic", _MANTLE_ROUTES, adapter=adapter)


def _split(base_url: str) -> tuple[Origin, str, str]:
    try:
        return split_base_url(base_url)
    except ValueError as exc:
        raise BuildError(f"base_url {exc}") from None


class _Signer:
    """Signs what an adapter has prepared."""

    def __init__(
        self, settings: BedrockSettings, base_url: str, service: str, origin: Origin, identities: aws.Identities
    ) -> None:
        self.identity = identities.of(settings, settings.region or bedrock_region_of(base_url))
        self._service = service
        self._root = f"{'https' if origin.secure else 'http'}://{origin.authority}"
        self._host = origin.authority

    async def authorize(self, method: bytes, prepared: Prepared) -> tuple[bytes, str]:
        credentials = await self.identity.credentials()
        signed = {"Host": self._host}
        for line in prepared.lines.split(b"\r\n"):
            name, colon, value = line.partition(b": ")
            if colon and name == b"Content-Type":
                signed["Content-Type"] = value.decode("latin-1")
        url = self._root + prepared.target.decode("ascii")
        lines = await aws.signature(credentials, self._service, method.decode("ascii"), url, signed, prepared.body)
        return lines, credentials.hint

    def answered(self, head: ResponseHead) -> None:
        """AWS may have refused the credentials themselves."""
        if head.status in (400, 403) and head.fields.get(b"x-amzn-errortype", b"").startswith(_REFUSED_CREDENTIALS):
            self.identity.distrust()


class InvokeModelAdapter:
    """`POST /model/{id}/invoke` and `/invoke-with-response-stream` of bedrock-runtime."""

    def __init__(
        self,
        settings: BedrockSettings,
        signer: _Signer,
        profiles: inference_profiles.InferenceProfiles,
        base_path: bytes,
        base_query: bytes,
    ) -> None:
        self._model = settings.model
        self._small_fast_model = settings.small_fast_model
        self._signer = signer
        self._profiles = profiles
        self._base_path = base_path
        self._base_query = base_query

    @property
    def hint(self) -> str:
        return self._signer.identity.hint

    def prepare(
        self,
        route: Route,
        query: bytes,  # noqa: ARG002 - Anthropic's own, which bedrock-runtime does not know
        fields: dict[bytes, bytes],
        body: bytes,
        facts: RequestFacts | None,
    ) -> Prepared:
        if facts is None:
            raise AdapterError(404, _why_not(route))
        model = mapped_model(facts.model, self._model, self._small_fast_model)
        behind = self._profiles.model_behind(model, self._signer.identity)
        rewritten = invoke_body(body, behind, beta_flags(fields.get(b"anthropic-beta", b"")))
        action = b"invoke-with-response-stream" if facts.stream else b"invoke"
        own_key, edits = _own_key(fields)
        return Prepared(
            target=b"%b/model/%b/%b%b" % (self._base_path, quote(model, safe="").encode(), action, self._base_query),
            body=rewritten.body,
            model=behind,
            dropped=_fields_of_aws(fields) | {b"content-type", b"accept", b"anthropic-beta"},
            lines=b"Content-Type: application/json\r\nAccept: application/json\r\n" + own_key,
            edits=(f"model: {facts.model[:200]} became {model}", *rewritten.edits, *edits),
            plain_answer=True,
        )

    async def authorize(self, method: bytes, prepared: Prepared) -> tuple[bytes, str]:
        return await self._signer.authorize(method, prepared)

    def transform(self, route: Route, head: ResponseHead) -> Transform | None:  # noqa: ARG002 - there is one
        if head.status >= 400:
            self._signer.answered(head)
            return _ErrorAnswer("anthropic", head)
        media_type = head.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        return _EventStream(head) if media_type == CONTENT_TYPE else None


class MantleAdapter:
    """The native APIs on bedrock-mantle: nothing is changed but the path."""

    def __init__(self, signer: _Signer, base_path: bytes, base_query: bytes) -> None:
        self._signer = signer
        self._messages_base = base_path.removesuffix(b"/v1")
        suffix = next((suffix for suffix in _MANTLE_SUFFIXES if base_path.endswith(suffix)), b"")
        self._root = base_path.removesuffix(suffix)
        self._base_query = base_query

    @property
    def hint(self) -> str:
        return self._signer.identity.hint

    def prepare(
        self,
        route: Route,
        query: bytes,
        fields: dict[bytes, bytes],
        body: bytes,
        facts: RequestFacts | None,
    ) -> Prepared:
        path = route.label.encode("ascii")
        model = facts.model if facts is not None else ""
        if path.startswith(b"/v1/messages"):
            target = self._messages_base + path
        else:
            below = next((prefix for start, prefix in _MANTLE_PREFIXES if model.startswith(start)), b"/v1")
            target = self._root + below + path.removeprefix(b"/v1")
        content_type = fields.get(b"content-type")
        return Prepared(
            target=target + _joined(self._base_query, query),
            body=body,
            model=model,
            dropped=_fields_of_aws(fields) | {b"content-type"},
            lines=b"" if content_type is None else b"Content-Type: %b\r\n" % content_type,
        )

    async def authorize(self, method: bytes, prepared: Prepared) -> tuple[bytes, str]:
        return await self._signer.authorize(method, prepared)

    def transform(self, route: Route, head: ResponseHead) -> Transform | None:
        """What AWS's own front answers, before any model's API does, has AWS's shape."""
        if head.status < 400:
            return None
        self._signer.answered(head)
        if b"x-amzn-errortype" not in head.fields or head.fields.get(b"content-encoding"):
            return None
        return _ErrorAnswer("openai" if route.format in ("chat_completions", "responses") else "anthropic", head)


class _EventStream:
    """Binary events become server-sent ones."""

    content_type = SSE_TYPE
    edit = "answer: AWS's event stream became server-sent events"

    def __init__(self, head: ResponseHead) -> None:
        self._stream = MessagesStream()
        self._coding = head.fields.get(b"content-encoding", b"")

    def feed(self, payload: bytes) -> bytes:
        if self._coding and self._coding.lower() != b"identity":
            raise TransformError("the event stream has a content coding, though none was asked for")
        try:
            return self._stream.feed(payload)
        except EventStreamError as error:
            raise TransformError(f"the upstream's event stream is damaged: {error}") from None

    def finish(self) -> bytes:
        try:
            self._stream.finish()
        except EventStreamError as error:
            raise TransformError(f"the upstream's event stream is damaged: {error}") from None
        return b""


class _ErrorAnswer:
    """An error of AWS in the shape that the client's SDK knows."""

    content_type = b"application/json"

    def __init__(self, shape: Literal["anthropic", "openai"], head: ResponseHead) -> None:
        self.edit = f"answer: AWS's error took {'Anthropic' if shape == 'anthropic' else 'OpenAI'}'s shape"
        self._shape = shape
        self._status = head.status
        self._error_type = head.fields.get(b"x-amzn-errortype", b"")
        self._body = b""

    def feed(self, payload: bytes) -> bytes:
        self._body = (self._body + payload)[:_MAX_ERROR]
        return b""

    def finish(self) -> bytes:
        return error_answer(self._shape, self._status, self._error_type, self._body)


def _why_not(route: Route) -> str:
    if route.label.startswith("/v1/models"):
        return (
            "Bedrock's InvokeModel has no list of models: this provider maps every model name to its `model` or, for names "
            "with haiku in them, its `small_fast_model`."
        )
    return (
        f"Bedrock's InvokeModel does not have {route.label}: tokens are counted in the usage of each answer. A provider with "
        "protocol mantle has Anthropic's API."
    )


def _fields_of_aws(fields: dict[bytes, bytes]) -> frozenset[bytes]:
    """Fields that AWS wants signed when it sees them."""
    return frozenset(name for name in fields if name.startswith(_AWS_FIELDS))


def _own_key(fields: dict[bytes, bytes]) -> tuple[bytes, tuple[str, ...]]:
    """A person's own Bedrock API key in `X-Api-Key`: bedrock-runtime takes it as a bearer token only."""
    token = fields.get(b"x-ostiary-token") or fields.get(b"x-coder-ai-governance-token")
    key = fields.get(b"x-api-key", b"")
    bearer = fields.get(b"authorization", b"")
    if not token or not key or key == token or key.startswith(b"ost_"):
        return b"", ()
    if bearer and token not in bearer and b" ost_" not in bearer:
        return b"", ()
    return b"Authorization: Bearer %b\r\n" % key, ("x-api-key: sent as a bearer token too",)


def _joined(base_query: bytes, query: bytes) -> bytes:
    if not base_query:
        return query
    return base_query + b"&" + query[1:] if len(query) > 1 else base_query
