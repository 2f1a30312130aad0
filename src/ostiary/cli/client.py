"""The REST API as the commands use it.

Where: `OSTIARY_URL`, else the server of `ostiary login`, else http://127.0.0.1:4000.
Whose token: `OSTIARY_TOKEN`, else that of `ostiary login` for this very server, else, for a server on this machine, the
owner token that its first start wrote, which is said on stderr.

Rules
- A token goes only to the server it was given for: that of `login` never to another URL, the owner token only to a
  loopback address. Redirects are not followed.
- Every failure is one line: what was asked of whom, why it failed, what to do.
"""

import json
import os
import ssl
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from ostiary import __version__
from ostiary.core.secret import Secret

from .failure import Failure, Refused
from .output import clean, note

DEFAULT_URL = "http://127.0.0.1:4000"
MAX_ROWS = 100_000
"""The most that one command reads."""
_PAGE = 1000
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)


@dataclass(frozen=True)
class Login:
    """What `ostiary login` keeps."""

    url: str
    token: Secret


@dataclass(frozen=True)
class Place:
    """The server a command talks to, and as whom."""

    url: str
    token: Secret
    url_origin: str
    token_origin: str


def login_file() -> Path:
    """`$XDG_CONFIG_HOME/ostiary/login.json`."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.config").expanduser()
    return base / "ostiary" / "login.json"


def read_login() -> Login | None:
    """What was stored; None when nothing was."""
    path = login_file()
    try:
        if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            raise Failure(f"{path} holds a token and others can read it; run: chmod 600 {path}")
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Login(str(stored["url"]), Secret(str(stored["token"])))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise Failure(f"{path} cannot be read; run `ostiary login` again") from None


def store_login(login: Login) -> Path:
    """Written 0600 beside the old one and moved over it."""
    path = login_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"url": login.url, "token": login.token.reveal()}, file)
    new.replace(path)
    return path


def normal_url(text: str, origin: str) -> str:
    """A server's base URL without a slash at its end. Raises `Failure` for what is none."""
    url = urlsplit(text.strip())
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or "@" in url.netloc:
        raise Failure(f"{origin} must be a server's address, e.g. {DEFAULT_URL} or https://ai.example.com")
    return text.strip().rstrip("/")


def is_local(url: str) -> bool:
    """Whether a URL names this machine by a loopback address."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_place() -> Place:
    """The server and the token of this call. Raises `Failure` when there is no token."""
    login = read_login()
    url, url_origin = DEFAULT_URL, "the default"
    if os.environ.get("OSTIARY_URL"):
        url, url_origin = normal_url(os.environ["OSTIARY_URL"], "OSTIARY_URL"), "OSTIARY_URL"
    elif login is not None:
        url, url_origin = login.url, str(login_file())
    if token := os.environ.get("OSTIARY_TOKEN", "").strip():
        return Place(url, Secret(token), url_origin, "OSTIARY_TOKEN")
    if login is not None and login.url == url:
        return Place(url, login.token, url_origin, str(login_file()))
    if is_local(url):
        found = _owner_token()
        if found is not None:
            path, owner = found
            note(f"(using the owner token in {path}; set OSTIARY_TOKEN or run `ostiary login` to be yourself)")
            return Place(url, owner, url_origin, str(path))
    raise Failure(f"no token for {url}: run `ostiary login` or set OSTIARY_TOKEN")


def _owner_token() -> tuple[Path, Secret] | None:
    """The token a server on this machine wrote at its first start, when we may read it."""
    from ostiary.config import ConfigError, load
    from ostiary.config.settings import default_data_dir

    try:
        directory = load({}, os.environ).settings.data_dir
    except ConfigError:
        directory = default_data_dir(os.environ)
    path = directory / "owner-token"
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return (path, Secret(token)) if token else None


def segment(text: str) -> str:
    """A name or id as one path segment."""
    return quote(text, safe="")


class Client:
    """Asks the server of a `Place`. Every method gives the JSON of the answer."""

    def __init__(self, place: Place) -> None:
        """Raises `Failure` when the token cannot stand in a header."""
        self.place = place
        token = place.token.reveal()
        if not (token.isascii() and token.isprintable()):
            raise Failure(f"the token of {place.token_origin} has a line break or a character beyond ASCII in it")
        local, https = is_local(place.url), place.url.startswith("https:")
        self._http = httpx.Client(
            base_url=place.url,
            headers={
                "Authorization": f"Bearer {token}",
                "User-Agent": f"ostiary-cli/{__version__}",
                "Accept": "application/json",
            },
            timeout=_TIMEOUT,
            # a proxy of the environment is not for this machine
            trust_env=not local,
            # the system's CAs take time to load: plain HTTP gets a context that trusts nobody
            verify=ssl.create_default_context() if https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    @classmethod
    def here(cls) -> Self:
        """For the server of this call."""
        return cls(find_place())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def get(self, path: str, **query: object) -> Any:
        return self._ask("GET", path, query=query)

    def every(self, path: str, field: str, *, limit: int = MAX_ROWS, **query: object) -> list[dict[str, Any]]:
        """Up to `limit` rows of a list, in the pages that the API gives: each goes on after the id of a last row."""
        rows: list[dict[str, Any]] = []
        while len(rows) < limit:
            size = min(limit - len(rows), _PAGE)
            after = rows[-1]["id"] if rows else None
            answer = self.get(path, limit=size, after_id=after, **query)
            page = answer[field] if isinstance(answer, dict) else answer
            rows += page
            if len(page) < size:
                break
        return rows[:limit]

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return self._ask("POST", path, body=body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask("PATCH", path, body=body)

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, *, query: dict[str, object] | None = None, body: Any = None) -> Any:
        parameters = {name: str(value) for name, value in (query or {}).items() if value not in (None, "")}
        return self._answered(self.send(method, path, query=parameters, body=body))

    def ask(self, method: str, path: str, *, within: float) -> Any:
        """As `get` and `post`, with so many seconds of silence at the most."""
        return self._answered(self.send(method, path, within=within))

    def send(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, within: float = 0.0
    ) -> httpx.Response:
        """The answer whatever its status; `within` so many seconds of silence instead of the usual."""
        timeout = httpx.Timeout(within, connect=min(within, 5.0)) if within else _TIMEOUT
        try:
            return self._http.request(method, path, params=query, json=body, timeout=timeout)
        except httpx.HTTPError as exc:
            raise Failure(self._unreachable(exc)) from None

    def _answered(self, answer: httpx.Response) -> Any:
        if answer.is_success:
            return self._content(answer)
        raise Refused(self._refusal(answer), answer.status_code)

    def _content(self, answer: httpx.Response) -> Any:
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            kind = answer.headers.get("content-type", "no content type")
            raise Failure(f"{self.place.url} answers with {clean(kind)}: is it an Ostiary server?") from None

    def _unreachable(self, exc: httpx.HTTPError) -> str:
        url = self.place.url
        reason = _root_cause(exc)
        where = f"{url} (from {self.place.url_origin})" if self.place.url_origin != "the default" else url
        if isinstance(reason, ssl.SSLCertVerificationError):
            return (
                f"{where} shows a certificate that is not trusted: {reason.verify_message}; "
                "name its CA with SSL_CERT_FILE=ca.pem"
            )
        if isinstance(reason, ssl.SSLError):
            return f"{where} does not speak TLS as we do ({reason.reason}); is it http:// instead of https://?"
        if isinstance(exc, httpx.ConnectTimeout | httpx.ConnectError):
            text = "no answer" if isinstance(exc, httpx.ConnectTimeout) else _os_text(reason)
            return f"cannot reach {where}: {text}; is `ostiary server` running? For another server set OSTIARY_URL"
        if isinstance(exc, httpx.TimeoutException):
            return f"{url} took the request and did not answer in time; see the server's log"
        tls = "; does it speak TLS? Then set OSTIARY_URL to https://…" if url.startswith("http://") else ""
        return f"the connection to {where} broke ({type(exc).__name__}){tls}; see the server's log"

    def _refusal(self, answer: httpx.Response) -> str:
        try:
            body = answer.json()
        except ValueError:
            body = None
        message, detail, problems = "", "", []
        if isinstance(body, dict):
            message, detail = str(body.get("message") or ""), str(body.get("detail") or "")
            problems = [
                f"{item.get('field')}: {item.get('detail')}".rstrip(".")
                for item in body.get("validations") or []
                if isinstance(item, dict)
            ]
            if detail and any(problem.endswith(detail.rstrip(".")) for problem in problems):
                detail = ""  # it would say the same twice
        if not message:
            if answer.is_redirect:
                target = clean(answer.headers.get("location", ""))
                return f"{self.place.url} sends us on to {target}; name the right address with OSTIARY_URL"
            message = f"{self.place.url} answers {answer.status_code} and is not the API of an Ostiary server"
        if answer.status_code == 401:
            detail = f"the token of {self.place.token_origin} was sent; run `ostiary login` or set OSTIARY_TOKEN"
        parts = [message.rstrip(".:"), *([detail.rstrip(".")] if detail else []), *problems]
        return " ".join(clean(": ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:])).split())


def _root_cause(exc: BaseException) -> BaseException:
    while exc.__cause__ is not None or exc.__context__ is not None:
        exc = exc.__cause__ or exc.__context__ or exc
    return exc


def _os_text(reason: BaseException) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason) or type(reason).__name__
