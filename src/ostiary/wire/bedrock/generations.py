"""What each generation of Claude takes on Bedrock (reference E.3). A new generation is a new row.

A model is known by its id, which stands in the ids of inference profiles (`eu.anthropic.claude-…`) and in most ARNs too. Where
an ARN does not name its model, thinking is left as the client sent it, for clients ask for what the model that they name takes.
"""

import re
from typing import Final, Literal

from msgspec import Struct

Thinking = Literal["adaptive", "budget", "either"]

EFFORT: Final = "effort-2025-11-24"
CONTEXT_MANAGEMENT: Final = "context-management-2025-06-27"

FLAGS: Final = frozenset(
    (
        "computer-use-2025-01-24",
        "token-efficient-tools-2025-02-19",
        "interleaved-thinking-2025-05-14",
        "output-128k-2025-02-19",
        "dev-full-thinking-2025-05-14",
        "context-1m-2025-08-07",
        "tool-search-tool-2025-10-19",
        "tool-examples-2025-10-29",
    )
)
"""Beta flags that every generation may be sent; Bedrock answers 400 to one that it does not know."""

UNSUPPORTED: Final = ("metadata", "service_tier", "container", "inference_geo")
"""Members of a Messages body that InvokeModel does not take."""

NEEDS_FLAG: Final = {"output_config": EFFORT, "context_management": CONTEXT_MANAGEMENT}
"""Members that are taken only with the beta flag beside them."""


class Generation(Struct, frozen=True):
    name: str
    ids: re.Pattern[str]
    """Is found in the ids of its models."""
    thinking: Thinking
    """Only adaptive, only with a token budget, or either."""
    flags: frozenset[str] = frozenset()
    """Beta flags besides those of `FLAGS`."""
    takes_output_config: bool = False
    """Without a flag; but for its `format`."""


def _row(name: str, ids: str, thinking: Thinking, *flags: str, takes_output_config: bool = False) -> Generation:
    return Generation(name, re.compile(ids), thinking, frozenset(flags), takes_output_config)


GENERATIONS: Final = (
    _row("Claude 5 and later", r"claude-[a-z]+-(?:[5-9]|\d\d)(?!\d)", "adaptive", takes_output_config=True),
    _row("Claude Opus 4.7 and later", r"claude-opus-4-(?:[7-9]|\d\d)(?!\d)", "adaptive", takes_output_config=True),
    _row("Claude 4.6", r"claude-[a-z]+-4-(?:[6-9]|\d\d)(?!\d)", "either"),
    _row("Claude Opus 4.5", r"claude-opus-4-5(?!\d)", "budget", EFFORT),
    _row("Claude Sonnet and Haiku 4.5", r"claude-(?:sonnet|haiku)-4-5(?!\d)", "budget", CONTEXT_MANAGEMENT),
    _row("an ARN that does not name its model", r"^arn:(?!.*claude)", "either"),
    _row("earlier Claude", r"", "budget"),
)
"""The first row that fits counts."""


def generation_of(model: str) -> Generation:
    return next(row for row in GENERATIONS if row.ids.search(model))


def mapped_model(requested: str, model: str, small_fast_model: str) -> str:
    """The configured model for the one that a client names."""
    return small_fast_model if "haiku" in requested else model
