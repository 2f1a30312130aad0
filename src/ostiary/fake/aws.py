"""AWS as far as Ostiary uses it: Bedrock's two protocols, behind signatures that are checked, and where identities come from.

    POST /model/{id}/invoke[-with-response-stream]             bedrock-runtime; service `bedrock`
    POST /anthropic/v1/… /openai/v1/… and signed ones of /v1/… bedrock-mantle, as the provider answers without the prefix
    GET  /inference-profiles/{arn}                             GetInferenceProfile
    POST /                                                     STS: AssumeRole
    /latest/…                                                  the metadata service of an instance

Rules
- The signature first, then what is asked, then the behaviour: a wrong signature decides the answer alone.
- A bearer token (a Bedrock API key) is as good as a signature, unless it is scripted to be refused.
"""

from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from . import aws_bedrock
from .aws_identity import AwsIdentities, sts_error
from .aws_signature import AwsError, Headers, check
from .behaviour import PLAIN, Behaviour, ControlError, behaviour, model_control
from .delivery import Reply
from .keys import Keys

_PROFILES = "/inference-profiles/"
_MANTLE = ("/anthropic", "/openai")
_BELOW = (("anthropic.", "/anthropic"), ("openai.", "/openai"))


class AwsRequest(NamedTuple):
    """A request as far as AWS's answer depends on it."""

    method: str
    target: str
    """With the query."""
    headers: Headers
    bearer: str
    """The API key, if there is one; of a signed request its access key id."""
    signed: bool
    control: str

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class _Model(msgspec.Struct):
    model: str = ""


def is_for_aws(path: str, *, signed: bool) -> bool:
    return signed or path == "/" or path.startswith(("/model/", "/latest/", "/anthropic/", "/openai/"))


def label(path: str) -> str:
    """One of a fixed set of names, for counting; empty for what is not AWS's alone."""
    if path.startswith("/model/"):
        return "/model/invoke-with-response-stream" if path.endswith("-stream") else "/model/invoke"
    if path.startswith("/latest/"):
        return "/latest"
    return "/" if path == "/" else ""


class FakeAws:
    def __init__(self, keys: Keys) -> None:
        self.identities = AwsIdentities()
        self._keys = keys

    def reply(self, request: AwsRequest, body: bytes, default: str, token: str) -> tuple[Reply, Behaviour] | str:
        """The answer and the behaviour it is sent with; of a request to Mantle the path that `FakeProvider` knows."""
        path = request.path
        try:
            if path.startswith("/latest/"):
                fields = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in request.headers}
                return self.identities.instance_metadata(request.method, path, fields), PLAIN
            if path == "/":
                return self._sts(request, body), PLAIN
            if path.startswith(_PROFILES):
                self._authenticate(request, body, "bedrock")
                return self.identities.inference_profile(unquote(path.removeprefix(_PROFILES))), PLAIN
            if not path.startswith("/model/"):
                self._authenticate(request, body, "bedrock-mantle")
                return _mantle_path(path, body)
            return self._invoke(request, body, default, token)
        except AwsError as failed:
            return aws_bedrock.error(failed), PLAIN

    def _invoke(self, request: AwsRequest, body: bytes, default: str, token: str) -> tuple[Reply, Behaviour]:
        self._authenticate(request, body, "bedrock")
        model, action = aws_bedrock.model_and_action(request.path)
        try:
            verdict = self._keys.verdict(request.bearer)
            wanted = behaviour(default, model_control(model), request.control, verdict)
        except ControlError as exc:
            raise AwsError(400, "ValidationException", f"fake provider: {exc}") from None
        if request.method != "POST":
            raise AwsError(405, "UnknownOperationException", "Method Not Allowed")
        try:
            return aws_bedrock.invoke(model, action, body, wanted, token), wanted
        except AwsError as failed:
            return aws_bedrock.error(failed), wanted

    def _sts(self, request: AwsRequest, body: bytes) -> Reply:
        try:
            caller = self._authenticate(request, body, "sts")
            return self.identities.sts(body, caller)
        except AwsError as failed:
            return sts_error(failed)

    def _authenticate(self, request: AwsRequest, body: bytes, service: str) -> str:
        if request.bearer and not request.signed and service != "sts":
            return ""
        return check(
            request.method,
            request.target,
            request.headers,
            body,
            service=service,
            key_of=self.identities.key_of,
        )


def _mantle_path(path: str, body: bytes) -> str:
    """The path below the prefix, which for OpenAI's formats goes by the model."""
    prefix = next((prefix for prefix in _MANTLE if path.startswith(f"{prefix}/v1/")), "")
    below = path.removeprefix(prefix)
    if below in ("/v1/chat/completions", "/v1/responses"):
        try:
            model = msgspec.json.decode(body, type=_Model).model
        except ValueError:
            return below
        if prefix != next((place for start, place in _BELOW if model.startswith(start)), ""):
            raise AwsError(400, "ValidationException", f"model `{model}` isn't supported on this route")
    return below
