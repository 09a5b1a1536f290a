"""What llm-d's sidecar does beside an engine that decodes: it has the prompt computed elsewhere, and fetches the KV.

The prompt is asked for as an answer of one token; the time that its KV takes on its way is not simulated. The engine
that decodes then begins with a prompt of one token: it spends no time on the rest, and no KV.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)
PREFILLER_HEADER = "x-prefiller-host-port"
"""Says which instance is to compute the prompt of a request: llm-d's contract."""

TIMEOUT_S = 120.0
FETCHED_PROMPT_TOKENS = 1


class PromptsElsewhere:
    """Has prompts computed by other engines, over one pool of connections."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._session: aiohttp.ClientSession | None = None

    async def left_to_compute(self, headers: Mapping[str, str], prompt_tokens: int) -> int:
        """Prompt tokens that are still to be computed here, once another engine has done what it was named for.

        All of them where the headers name none, or where it failed: so does the sidecar.
        """
        endpoint = headers.get(PREFILLER_HEADER)
        if not endpoint:
            return prompt_tokens
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        body = {"model": self._model, "prompt": prompt_tokens, "max_tokens": 1, "ignore_eos": True}
        try:
            async with self._session.post(f"http://{endpoint}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("the prompt is computed here", extra={"endpoint": endpoint, "error": str(error)})
            return prompt_tokens
        return FETCHED_PROMPT_TOKENS

    async def close(self) -> None:
        """Gives connections back."""
        if self._session is not None:
            await self._session.close()
