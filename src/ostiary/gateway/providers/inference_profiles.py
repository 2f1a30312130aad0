"""Which model an application inference profile leads to, asked of AWS (reference E.3): its ARN does not say.

Rules
- Asked once for one profile, beside the requests, from the first of them on; until the answer is here a request is sent as to a
  model that is not known. What was found is kept: a profile never changes its model.
- A failure is logged and asked again after a minute, by the next request. It fails no request.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from . import aws
from .adapter import AdapterError

RETRY_SECONDS: Final = 60.0
_MARK: Final = ":application-inference-profile/"
_MAX_HELD: Final = 256

_log: Final = structlog.get_logger()


class InferenceProfiles:
    """What is known of a process's profiles. Belongs to the event loop."""

    def __init__(self, limit: int = _MAX_HELD, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._models: OrderedDict[str, str] = OrderedDict()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._failed_at: OrderedDict[str, float] = OrderedDict()

    def model_behind(self, model: str, identity: aws.Identity) -> str:
        """The id of the model that `model` leads to, as far as that is known now; `model` itself when it is no such ARN."""
        if _MARK not in model:
            return model
        found = self._models.get(model)
        if found is None:
            self._ask(model, identity)
            return model
        return found

    def _ask(self, arn: str, identity: aws.Identity) -> None:
        task = self._asking.get(arn)
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            return
        failed_at = self._failed_at.get(arn)
        if failed_at is not None and self._clock() - failed_at < RETRY_SECONDS:
            return
        if len(self._asking) < self._limit:
            self._asking[arn] = asyncio.get_running_loop().create_task(self._find(arn, identity))

    async def _find(self, arn: str, identity: aws.Identity) -> None:
        try:
            credentials = await identity.credentials()
            self._models[arn] = found = await aws.in_thread(lambda: _model_of(arn, credentials))
            self._failed_at.pop(arn, None)
            _bound(self._models, self._limit)
            _log.info("resolving inference profile", profile=arn, model=found)
        except Exception as exc:  # noqa: BLE001 - of botocore: anything; nobody waits for it
            self._failed_at[arn] = self._clock()
            _bound(self._failed_at, self._limit)
            reason = str(exc) if isinstance(exc, AdapterError | LookupError) else aws.told(exc)
            _log.warning("failing to resolve inference profile", profile=arn, reason=reason)
        finally:
            self._asking.pop(arn, None)


SHARED: Final = InferenceProfiles()


def _model_of(arn: str, credentials: aws.Credentials) -> str:
    """Blocks."""
    from botocore.session import Session

    region = arn.split(":")[3] or credentials.region
    client = aws.client_of(Session(), "bedrock", credentials, region)
    try:
        answer = client.get_inference_profile(inferenceProfileIdentifier=arn)
    finally:
        client.close()
    model = next((str(model.get("modelArn", "")) for model in answer.get("models", ())), "")
    found = model.rpartition("/")[2]
    if not found:
        raise LookupError("AWS names no model for it")
    return found


def _bound(held: "OrderedDict[str, str] | OrderedDict[str, float]", limit: int) -> None:
    while len(held) > limit:
        held.popitem(last=False)
