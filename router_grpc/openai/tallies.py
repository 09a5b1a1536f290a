"""Tokens of an answer that is made in parts, as engines count them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_SAID_TOKENS = 1_000_000_000


@dataclass(slots=True)
class Tally:
    """``before`` are the output tokens of earlier parts, ``events`` those that carried something in this one.

    ``said`` is what the engine has said of this part's output tokens so far, ``None`` where it says nothing; then
    every event counts as one token.
    """

    before: int = 0
    events: int = 0
    said: int | None = None
    first_prompt_tokens: int | None = None
    part_prompt_tokens: int | None = None
    part_cached_tokens: int | None = None
    details: dict[str, Any] | None = None

    @property
    def part(self) -> int:
        """Output tokens of this part."""
        return self.events if self.said is None else self.said

    @property
    def produced(self) -> int:
        """Output tokens of all parts."""
        return self.before + self.part

    def note(self, usage: object) -> None:
        """An engine's usage object of this part, or anything else."""
        if not isinstance(usage, dict):
            return
        completion, prompt = whole(usage.get("completion_tokens")), whole(usage.get("prompt_tokens"))
        if completion is not None:
            self.said = completion
        if prompt is not None:
            self.part_prompt_tokens = prompt
            if self.first_prompt_tokens is None:
                self.first_prompt_tokens = max(0, prompt - self.before)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.part_cached_tokens = whole(details.get("cached_tokens"))
            if self.details is None and not self.before:
                self.details = details

    def next_part(self, *, keeps: bool, without: int = 0) -> None:
        """Another part begins; what there is stays only where it was of use, and ``without`` what is made anew."""
        if keeps:
            self.before = self.produced - without
        else:
            self.first_prompt_tokens = self.details = None
        self.events, self.said = 0, None
        self.part_prompt_tokens = self.part_cached_tokens = None

    def usage(self) -> dict[str, Any] | None:
        """The usage object of the whole answer so far; ``None`` where no engine said how long the prompt is."""
        if self.first_prompt_tokens is None:
            return None
        prompt, output = self.first_prompt_tokens, self.produced
        found: dict[str, Any] = {
            "prompt_tokens": prompt,
            "total_tokens": prompt + output,
            "completion_tokens": output,
        }
        if self.details is not None:
            found["prompt_tokens_details"] = self.details
        return found


def whole(value: object) -> int | None:
    """A count of tokens; ``None`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(value, MAX_SAID_TOKENS)
