"""What a client wants, as it is kept for as long as parts of its answer are to be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from router_grpc.openai.answers import PassedAnswer, WholeAnswer
from router_grpc.openai.generation import Generation, Produced, generation_of, part_body
from router_grpc.openai.stream import StreamAnswer
from router_grpc.picker.asking import route_ask
from router_grpc.picker.bodies import Asked, asked_in, asked_of, content_of, makes_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.listener_specs import OpenAISpec
    from router_grpc.calls import RouteAsk
    from router_grpc.openai.answers import Answer

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Part:
    """What is asked of an instance next: the body, how it is placed, and the slice's bound if it is one."""

    body: bytes = field(repr=False)
    ask: RouteAsk | None
    slice_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A request as it came. ``asked`` is ``None`` where it makes no tokens, ``generation`` where it makes no text."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    asked: Asked | None
    generation: Generation | None
    slice_tokens: int
    goes_on: bool
    """Whether its answer may be made in parts."""

    @property
    def streams(self) -> bool:
        """Whether the client wants tokens as they come."""
        return self.asked is not None and self.asked.streams

    def part(self, produced: Produced, *, excluded: frozenset[str]) -> Part:
        """The next part, after what there is."""
        if self.asked is None:
            return Part(self.body, None)
        body, asked, bound = self.body, self.asked, None
        if self.generation is not None and self.goes_on:
            left = None if self.generation.max_tokens is None else self.generation.max_tokens - produced.tokens
            size = self.slice_tokens + produced.tokens_anew
            is_slice = bool(self.slice_tokens) and (left is None or left > size)
            bound = size if is_slice else None
            if is_slice or self.generation.streams or produced.text:
                body = part_body(self.generation, produced, limit=bound, asks_usage=True)
            if produced.text:
                asked = asked_of(self.path, body) or asked
            elif bound is not None:
                asked = replace(asked, max_output_tokens=bound)
        ask = replace(route_ask(asked, self.headers), excluded_instance_ids=excluded)
        return Part(body, ask, bound)

    def answer(self, content_type: str) -> Answer:
        """What becomes of an engine's answer of this type."""
        is_stream = content_type.startswith(EVENT_STREAM)
        if self.generation is None or is_stream != self.generation.streams:
            return PassedAnswer(is_stream=is_stream)
        if is_stream:
            return StreamAnswer(self.generation, is_plain=not self.goes_on)
        return WholeAnswer(self.generation.kind)


def intent_of(method: str, path: str, headers: Mapping[str, str], body: bytes, rules: OpenAISpec) -> Intent:
    """A request as the rules in force treat it; ``headers`` by lower-case name.

    Raises:
        InvalidRequestError: its body is none for its path.
    """
    content = content_of(body) if method == "POST" and makes_tokens(path) else None
    generation = None if content is None else generation_of(path, content)
    return Intent(
        path=path,
        headers=headers,
        body=body,
        asked=None if content is None else asked_in(path, content),
        generation=generation,
        slice_tokens=rules.slice_tokens,
        goes_on=rules.resume == "Tokens" and generation is not None and not generation.why_whole,
    )
