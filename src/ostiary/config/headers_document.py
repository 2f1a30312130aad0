"""docs/headers.md, made from the rules of headers: `python -m ostiary.config.headers_document > docs/headers.md`."""

import sys
from collections.abc import Iterable

from ostiary.http1.fields import REQUEST_RULES, RESPONSE_RULES, Rule, When

_INTRODUCTION = """\
# Headers

<!-- Made by `python -m ostiary.config.headers_document`; a test checks that it is current. -->

A header goes on to the provider, and back to the client, as it came: in its order and its spelling. None is made up, a
`User-Agent` neither. What is not sent on stands here; a name that ends in `*` means all that begin so.
"""

_WHERE: dict[When, str] = {
    "always": "dropped",
    "provider": "dropped",
    "gateway_key": "dropped, but kept when a person's own credential is used",
    "rewritten": "written anew",
}

_ACTOR = """\
## Actor headers

With `send_actor_headers = true` providers are told who makes a call, on bridged routes (those that are recorded in full):

| setting | default | holds |
|---|---|---|
| `actor_header_id` | `X-AI-Bridge-Actor-ID` | the person's id |
| `actor_header_username` | `X-AI-Bridge-Actor-Metadata-Username` | the username |
| `actor_header_email` | `off` | the email address; `X-AI-Bridge-Actor-Metadata-Email` is its usual name |

- `off` sends none of that kind, and so does what is not known of a person.
- What a client sends under these names is dropped, and so is every `X-AI-Bridge-Actor*`, also while nothing is sent.
- Values are visible ASCII. Everything else, and `%`, is percent-encoded UTF-8: `Zoë` is `Zo%C3%AB`.
- A name is letters, digits and ``!#$%&'*+-.^_`|~``, not that of another of the three, none that has another use (those
  above, `User-Agent`, `Accept`, `Date`, `Content-*`, `Set-Cookie`, `Anthropic-*`, `X-Amz-*`), and of those that begin with
  `X-AI-Bridge-Actor` only its own. A wrong name stops the start.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(
        (
            _INTRODUCTION,
            "## From the client to the provider\n",
            _table(REQUEST_RULES),
            "Fields with an Ostiary token are dropped wherever they stand. A body that had to be edited goes without its\n"
            "`Content-Encoding`. What providers that sign or translate requests replace stands in the decision trace.\n",
            "## From the provider to the client\n",
            _table(RESPONSE_RULES),
            "Every answer has `x-ostiary-interception-id` or `x-ostiary-request-id` of this gateway; `x-ostiary-timing: 1` in\n"
            "a request adds `Server-Timing`.\n",
            _ACTOR,
        )
    )


def _table(rules: Iterable[Rule]) -> str:
    rows = "\n".join(
        f"| {', '.join(f'`{name}`' for name in rule.names.split())} | {_WHERE[rule.when]} | {rule.why} |"
        for rule in rules
    )
    return f"| header | | because it |\n|---|---|---|\n{rows}\n"


if __name__ == "__main__":
    sys.stdout.write(page())
