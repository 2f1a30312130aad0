"""Checks Signature Version 4 by computing it, from the request as it came.

Source: AWS's "Create a signed AWS API request". The path is encoded once more than on the wire, as for every service but S3.
"""

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, unquote

ALGORITHM = "AWS4-HMAC-SHA256"

_AUTHORIZATION = re.compile(
    rf"{ALGORITHM} Credential=(?P<key>[^/,\s]+)/(?P<date>\d{{8}})/(?P<region>[^/,\s]+)/(?P<service>[^/,\s]+)/aws4_request,"
    r" ?SignedHeaders=(?P<signed>[^,\s]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)
_SPACES = re.compile(r" +")
_CLOCK_SKEW = 300.0
"""Seconds."""


class AwsError(Exception):
    """A refusal as AWS words it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class AwsKey(NamedTuple):
    """What an access key id stands for. `token` and `expires_at` (Unix seconds) only of temporary ones."""

    secret: str
    token: str = ""
    expires_at: float = 0.0


Headers = Sequence[tuple[bytes, bytes]]


def signer_of(authorization: str) -> str:
    """The access key id that a signature names; empty when it is none."""
    found = _AUTHORIZATION.fullmatch(authorization)
    return found["key"] if found else ""


def check(
    method: str, target: str, headers: Headers, body: bytes, *, service: str, key_of: Callable[[str], AwsKey | None]
) -> str:
    """The access key id of a request that is signed as it should be. Raises `AwsError`."""
    fields = _joined(headers)
    authorization = fields.get("authorization", "")
    if not authorization:
        raise AwsError(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    found = _AUTHORIZATION.fullmatch(authorization)
    if found is None:
        raise AwsError(
            403, "IncompleteSignatureException", "Authorization header is not what Signature Version 4 asks for"
        )
    key = key_of(found["key"])
    if key is None or fields.get("x-amz-security-token", "") != key.token:
        raise AwsError(403, "UnrecognizedClientException", "The security token included in the request is invalid.")
    if key.expires_at and key.expires_at <= time.time():
        raise AwsError(403, "ExpiredTokenException", "The security token included in the request is expired")
    if found["service"] != service:
        raise _invalid(f"Credential should be scoped to correct service: '{service}'.")
    moment = fields.get("x-amz-date", "")
    _check_date(moment, found["date"])
    signed = found["signed"].split(";")
    unsigned = [name for name in fields if name.startswith("x-amz-") and name not in signed]
    if "host" not in signed or signed != sorted(signed) or unsigned:
        raise _invalid(f"Host and all of x-amz-* must be signed, in order; not signed: {', '.join(unsigned)}")
    canonical = _canonical_request(method, target, fields, signed, body)
    scope = f"{found['date']}/{found['region']}/{service}/aws4_request"
    text = "\n".join((ALGORITHM, moment, scope, hashlib.sha256(canonical).hexdigest()))
    secret = b"AWS4" + key.secret.encode()
    for part in (found["date"], found["region"], service, "aws4_request"):
        secret = hmac.digest(secret, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.new(secret, text.encode(), "sha256").hexdigest(), found["signature"]):
        raise _invalid(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access "
            "Key and signing method. Consult the service documentation for details."
        )
    return found["key"]


def _canonical_request(method: str, target: str, fields: dict[str, str], signed: list[str], body: bytes) -> bytes:
    path, _, query = target.partition("?")
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    coded = sorted((_coded(unquote(name)), _coded(unquote(value))) for name, _, value in pairs)
    lines = (
        method,
        quote(path or "/", safe="/-_.~"),
        "&".join(f"{name}={value}" for name, value in coded),
        *(f"{name}:{_SPACES.sub(' ', fields.get(name, '').strip())}" for name in signed),
        "",
        ";".join(signed),
        hashlib.sha256(body).hexdigest(),
    )
    return "\n".join(lines).encode("latin-1")


def _check_date(moment: str, date: str) -> None:
    try:
        signed_at = datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise AwsError(
            403, "IncompleteSignatureException", "X-Amz-Date is missing or not of the basic format"
        ) from None
    if abs(time.time() - signed_at) > _CLOCK_SKEW:
        raise _invalid(f"Signature expired: {moment} is too far from now")
    if not moment.startswith(date):
        raise _invalid("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")


def _joined(headers: Headers) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        lowered, text = name.decode("latin-1").lower(), value.decode("latin-1")
        fields[lowered] = f"{fields[lowered]},{text}" if lowered in fields else text
    return fields


def _coded(text: str) -> str:
    return quote(text, safe="-_.~")


def _invalid(message: str) -> AwsError:
    return AwsError(403, "InvalidSignatureException", message)
