"""Requests as OpenAI clients send them: plain HTTP to a front, which asks routers by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmrouter.testbed.completion_stream import CompletionError, completion_request, open_completion
from llmrouter.testbed.envoy import INSTANCE_HEADER
from llmrouter.testbed.replay_client import RequestFailedError

if TYPE_CHECKING:
    from llmrouter.testbed.replay_client import Life, ReplayCounts

CONNECT_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 3
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses that the official OpenAI clients send a request again for, twice unless told otherwise."""

RETRY_WAIT_S = 0.5
"""Their first wait, where the answer says none; it doubles."""

MAX_RETRY_WAIT_S = 8.0


class ThroughFront:
    """A client that knows nothing of routers: the address of a front, and the retries that clients come with."""

    def __init__(self, front: str, model: str) -> None:
        self._front = front
        self._model = model

    async def serve(self, life: Life, counts: ReplayCounts) -> None:
        """One request, and again while nothing of an answer came; raises RequestFailedError."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return await self._complete(life, counts)
            except CompletionError as error:
                stream = life.stream
                status = stream.status if stream is not None else None
                begun = stream is not None and stream.first_token_at_s is not None
                if begun or attempt == MAX_ATTEMPTS or (status is not None and status not in RETRIED):
                    raise RequestFailedError(str(error)) from error
            life.retries += 1
            counts.retries += 1
            await asyncio.sleep(_wait_s(stream.header("retry-after") if stream is not None else "", attempt))
        return None

    async def _complete(self, life: Life, counts: ReplayCounts) -> None:
        life.stream = None
        request = completion_request(
            endpoint=self._front,
            model=self._model,
            request_id=life.request_id,
            prompt_tokens=life.prompt_tokens,
            output_tokens=life.output_tokens,
            headers={"x-llmrouter-application": life.application} if life.application else {},
        )
        life.stream = stream = await open_completion(self._front, request, timeout_s=CONNECT_TIMEOUT_S)
        try:
            await stream.closed.wait()
            usage = stream.usage()
        finally:
            counts.chunks += stream.chunks
            stream.abort()
        life.instance_id = stream.header(INSTANCE_HEADER)
        life.usage_output_tokens = usage.output_tokens


def _wait_s(asked: str, attempt: int) -> float:
    wait_s = float(asked) if asked.isdigit() else RETRY_WAIT_S * 2 ** (attempt - 1)
    return min(wait_s, MAX_RETRY_WAIT_S)
