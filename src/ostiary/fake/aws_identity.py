"""Who may sign, and the two places that hand out temporary credentials: STS and the metadata service of an instance.

Source: AWS's API reference of STS (`AssumeRole`, query protocol) and the EC2 guide to instance metadata (IMDSv2).
"""

import secrets
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import msgspec
from msgspec import Struct

from .aws_signature import AwsError, AwsKey
from .delivery import Reply

ACCESS_KEY = "AKIAFAKEFAKEFAKEFAKE"
SECRET_KEY = "fake/secret+access/key+of/40/characters0"  # noqa: S105 - of nobody
ROLE = "arn:aws:iam::123456789012:role/ostiary-fake"
EXTERNAL_ID = "fake-external-id"

_STS_CODES = {
    "ExpiredTokenException": "ExpiredToken",
    "IncompleteSignatureException": "IncompleteSignature",
    "InvalidSignatureException": "SignatureDoesNotMatch",
    "MissingAuthenticationTokenException": "MissingAuthenticationToken",
    "UnrecognizedClientException": "InvalidClientTokenId",
}
"""The query protocol has other names for them."""
_MAX_ISSUED = 1000
_METADATA = "/latest/meta-data/"
_CREDENTIALS = f"{_METADATA}iam/security-credentials/"
_NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"


class Role(Struct, forbid_unknown_fields=True):
    """A role that may be assumed. `seconds`: how long its credentials are valid, whatever is asked for."""

    arn: str = ROLE
    external_id: str = EXTERNAL_ID
    seconds: float = 3600.0


class Metadata(Struct, forbid_unknown_fields=True):
    """The instance that the metadata service speaks of."""

    enabled: bool = True
    role: str = "fake-instance"
    seconds: float = 3600.0
    region: str = "us-east-1"


class Profile(Struct, forbid_unknown_fields=True):
    """An application inference profile and the model that it leads to."""

    arn: str
    model: str


class AwsIdentities:
    def __init__(self) -> None:
        self._keys: dict[str, AwsKey] = {}
        self._issued: dict[str, AwsKey] = {}
        self._roles: dict[str, Role] = {}
        self._profiles: dict[str, Profile] = {}
        self._metadata_token = secrets.token_urlsafe(24)
        self.metadata = Metadata()
        self.clear()

    def clear(self) -> None:
        """As at the start: one key, one role, an instance; nothing handed out."""
        self._keys = {ACCESS_KEY: AwsKey(SECRET_KEY)}
        self._issued = {}
        self._profiles = {}
        self._roles = {ROLE: Role()}
        self.metadata = Metadata()

    def set_key(self, access_key: str, secret: str) -> None:
        """An empty secret takes the key back, a temporary one too."""
        if secret:
            self._keys[access_key] = AwsKey(secret)
        else:
            self._keys.pop(access_key, None)
            self._issued.pop(access_key, None)

    def set_role(self, role: Role) -> None:
        self._roles[role.arn] = role

    def set_profile(self, profile: Profile) -> None:
        self._profiles[profile.arn] = profile

    def inference_profile(self, arn: str) -> Reply:
        """What `GetInferenceProfile` answers. Raises `AwsError`."""
        profile = self._profiles.get(arn)
        if profile is None:
            raise AwsError(404, "ResourceNotFoundException", "The requested inference profile does not exist.")
        models = [{"modelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{profile.model}"}]
        answer = {
            "inferenceProfileArn": arn,
            "inferenceProfileId": arn.rpartition("/")[2],
            "inferenceProfileName": "fake",
            "models": models,
            "status": "ACTIVE",
            "type": "APPLICATION",
        }
        return Reply(200, (("content-type", "application/json"),), (msgspec.json.encode(answer),))

    def key_of(self, access_key: str) -> AwsKey | None:
        return self._keys.get(access_key) or self._issued.get(access_key)

    def as_json(self) -> dict[str, Any]:
        """Without secrets."""
        return {
            "keys": sorted(self._keys),
            "issued": {key: held.expires_at for key, held in self._issued.items()},
            "roles": list(self._roles.values()),
            "profiles": list(self._profiles.values()),
            "metadata": self.metadata,
        }

    def sts(self, body: bytes, caller: str) -> Reply:
        """The answer to a signed query. Raises `AwsError`."""
        asked = {name: values[-1] for name, values in parse_qs(body.decode("latin-1")).items()}
        if asked.get("Action") != "AssumeRole":
            raise AwsError(
                400, "InvalidAction", f"Could not find operation {asked.get('Action', '')} for version 2011-06-15"
            )
        arn, session = asked.get("RoleArn", ""), asked.get("RoleSessionName", "")
        role = self._roles.get(arn)
        if not session:
            raise AwsError(400, "ValidationError", "1 validation error detected: Value null at 'roleSessionName'")
        if role is None or role.external_id != asked.get("ExternalId", ""):
            who = f"User: {caller} is not authorized to perform: sts:AssumeRole on resource: {arn}"
            raise AwsError(403, "AccessDenied", who)
        access_key, issued = self._issue(role.seconds)
        return _xml(
            200,
            f'<AssumeRoleResponse xmlns="{_NAMESPACE}"><AssumeRoleResult><AssumedRoleUser>'
            f"<AssumedRoleId>AROAFAKE:{escape(session)}</AssumedRoleId><Arn>{escape(arn)}/{escape(session)}</Arn>"
            f"</AssumedRoleUser><Credentials><AccessKeyId>{access_key}</AccessKeyId>"
            f"<SecretAccessKey>{issued.secret}</SecretAccessKey><SessionToken>{issued.token}</SessionToken>"
            f"<Expiration>{_iso(issued.expires_at)}</Expiration></Credentials></AssumeRoleResult>"
            "<ResponseMetadata><RequestId>fa4e0000-0000-4000-8000-000000000001</RequestId></ResponseMetadata>"
            "</AssumeRoleResponse>",
        )

    def instance_metadata(self, method: str, path: str, fields: dict[str, str]) -> Reply:
        """What the metadata service answers; every read needs the session's token (IMDSv2)."""
        metadata = self.metadata
        if not metadata.enabled:
            return _text(404, "")
        if path == "/latest/api/token":
            if method != "PUT" or not fields.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return _text(400, "")
            return _text(200, self._metadata_token)
        if fields.get("x-aws-ec2-metadata-token") != self._metadata_token:
            return _text(401, "")
        if path == _CREDENTIALS:
            return _text(200, metadata.role)
        if path == f"{_CREDENTIALS}{metadata.role}":
            access_key, issued = self._issue(metadata.seconds)
            answer = (
                f'{{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"{_iso(time.time())}","AccessKeyId":"{access_key}",'
                f'"SecretAccessKey":"{issued.secret}","Token":"{issued.token}","Expiration":"{_iso(issued.expires_at)}"}}'
            )
            return _text(200, answer)
        if path.startswith(f"{_METADATA}placement/availability-zone"):
            return _text(200, f"{metadata.region}a")
        return _text(404, "")

    def _issue(self, seconds: float) -> tuple[str, AwsKey]:
        access_key = "ASIA" + secrets.token_hex(8).upper()
        issued = AwsKey(secrets.token_hex(20), secrets.token_hex(64), time.time() + seconds)
        self._issued[access_key] = issued
        if len(self._issued) > _MAX_ISSUED:
            self._issued.pop(next(iter(self._issued)))
        return access_key, issued


def sts_error(error: AwsError) -> Reply:
    """An error of the query protocol."""
    kind = "Receiver" if error.status >= 500 else "Sender"
    code = _STS_CODES.get(error.code, error.code)
    said = f"<Type>{kind}</Type><Code>{code}</Code><Message>{escape(str(error))}</Message>"
    return _xml(error.status, f'<ErrorResponse xmlns="{_NAMESPACE}"><Error>{said}</Error></ErrorResponse>')


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _xml(status: int, text: str) -> Reply:
    return Reply(status, (("content-type", "text/xml"),), (text.encode(),))


def _text(status: int, text: str) -> Reply:
    return Reply(status, (("content-type", "text/plain"),), (text.encode(),))
