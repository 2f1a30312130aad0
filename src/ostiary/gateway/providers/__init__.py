"""What is particular to each kind of provider, and `build_provider`, the one way from a row to something that serves.

`base`       `RuntimeProvider`: routes, origin, credentials of a configured upstream
`openai`     everything that speaks OpenAI's format
`anthropic`  Anthropic
`copilot`    GitHub Copilot
`bedrock`    Claude on AWS Bedrock; `aws`: which credentials sign; `inference_profiles`: which model an ARN leads to
"""

from ostiary.core.providers import BedrockSettings, ProviderSpec, ProviderType

from .anthropic import build_anthropic
from .base import BuildError, RuntimeKey, RuntimeProvider, broken_provider
from .bedrock import build_bedrock
from .copilot import build_copilot
from .openai import build_openai

__all__ = ["RuntimeKey", "RuntimeProvider", "build_provider"]

_OPENAI_FORMAT = frozenset(
    (
        ProviderType.OPENAI,
        ProviderType.AZURE,
        ProviderType.GOOGLE,
        ProviderType.VERCEL,
        ProviderType.OPENROUTER,
        ProviderType.OPENAI_COMPAT,
    )
)


def build_provider(spec: ProviderSpec, *, allow_byok: bool) -> RuntimeProvider:
    """A provider to serve from. Never raises: what cannot be built answers 503 with its reason, the rest serve on."""
    try:
        return _build(spec, allow_byok=allow_byok)
    except BuildError as error:
        return broken_provider(spec, str(error))
    except Exception as error:  # noqa: BLE001 - whatever a row holds, the others are served
        kind = type(error).__name__
        return broken_provider(spec, f"it cannot be built, which is a mistake of the gateway's ({kind})")


def _build(spec: ProviderSpec, *, allow_byok: bool) -> RuntimeProvider:
    if spec.error:
        raise BuildError(spec.error)
    try:
        kind = ProviderType(spec.type)
    except ValueError:
        known = ", ".join(ProviderType)
        raise BuildError(f"unknown provider type {spec.type!r}; this gateway knows {known}") from None
    if kind in _OPENAI_FORMAT:
        return build_openai(spec, kind, allow_byok=allow_byok)
    if kind is ProviderType.ANTHROPIC and not (isinstance(spec.settings, BedrockSettings) and spec.settings.configured):
        return build_anthropic(spec, allow_byok=allow_byok)
    if kind is ProviderType.COPILOT:
        return build_copilot(spec)
    return build_bedrock(spec, allow_byok=allow_byok)
