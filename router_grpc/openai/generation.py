"""A request for text as engines take it, and the bodies of the parts that its answer is made in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = {"chat": ("max_completion_tokens", "max_tokens"), "completion": ("max_tokens",)}
"""Fields that bound an answer's tokens; of several the first counts."""


class Kind(StrEnum):
    """Which of the two bodies it is."""

    CHAT = "chat"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class Generation:
    """A request for text. ``why_whole`` says why its answer cannot be made in parts; empty where it can.

    ``max_tokens`` is the client's bound, ``None`` where there is none.
    """

    kind: Kind
    content: dict[str, Any] = field(repr=False)
    streams: bool
    max_tokens: int | None
    wants_usage: bool
    wants_usage_always: bool
    why_whole: str


@dataclass(frozen=True, slots=True)
class Produced:
    """What there is of an answer. ``token_ids`` is ``None`` where the engine did not say them all.

    ``tokens_anew`` are made again by the next part, and are none of ``tokens``: see ``given_text``.
    """

    text: str = ""
    tokens: int = 0
    token_ids: tuple[int, ...] | None = None
    tokens_anew: int = 0


def generation_of(path: str, content: dict[str, Any]) -> Generation | None:
    """A request for text; ``None`` where the path is another. ``content`` has passed ``picker.bodies``."""
    bare = path.split("?", 1)[0].rstrip("/")
    if bare.endswith("/chat/completions"):
        kind = Kind.CHAT
    elif bare.endswith("/completions"):
        kind = Kind.COMPLETION
    else:
        return None
    options = content.get("stream_options")
    options = options if isinstance(options, dict) else {}
    made = Generation(
        kind=kind,
        content=content,
        streams=content.get("stream") is True,
        max_tokens=next((value for name in LIMITS[kind] if (value := _count(content.get(name))) is not None), None),
        wants_usage=options.get("include_usage") is True,
        wants_usage_always=options.get("continuous_usage_stats") is True,
        why_whole="",
    )
    return replace(made, why_whole=next((why for why, holds in _REASONS if holds(made)), ""))


def part_body(generation: Generation, produced: Produced, *, limit: int | None, asks_usage: bool) -> bytes:
    """The body of the next part.

    ``limit`` bounds its tokens, ``None`` for as many as the client allows in all less those that there are. Where
    ``asks_usage``, a stream is to say with every event how many tokens there are.
    """
    content = dict(generation.content)
    if produced.text:
        _go_on(generation.kind, content, produced)
        if (least := _count(content.get("min_tokens"))) is not None:
            content["min_tokens"] = max(0, least - produced.tokens)
    if limit is None and generation.max_tokens is not None:
        limit = generation.max_tokens - produced.tokens
    if limit is not None:
        names = [name for name in LIMITS[generation.kind] if content.get(name) is not None] or ["max_tokens"]
        content |= dict.fromkeys(names, limit)
    if generation.streams and asks_usage:
        options = content.get("stream_options")
        given = options if isinstance(options, dict) else {}
        content["stream_options"] = {**given, "include_usage": True, "continuous_usage_stats": True}
    return json.dumps(content, separators=(",", ":")).encode()


def given_text(kind: Kind, text: str) -> tuple[str, str]:
    """What an engine is given of a text that there is already, and the end of it that it is not.

    Chat templates cut the white space that ends a message: it is left out for all of them, and made anew.
    """
    given = text.rstrip() if kind is Kind.CHAT else text
    return given, text[len(given) :]


def _go_on(kind: Kind, content: dict[str, Any], produced: Produced) -> None:
    text, _ = given_text(kind, produced.text)
    if kind is Kind.COMPLETION:
        prompt = content["prompt"]
        content["prompt"] = prompt + text if isinstance(prompt, str) else [*prompt, *(produced.token_ids or ())]
        return
    messages = list(content["messages"])
    if content.get("continue_final_message") is True:
        last = messages.pop()
        text = last["content"] + text
    messages.append({"role": "assistant", "content": text})
    content |= {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _says(name: str, *harmless: object) -> Callable[[Generation], bool]:
    plain = [(type(one), one) for one in (None, False, *harmless)]

    def says(made: Generation) -> bool:
        value = made.content.get(name)
        return (type(value), value) not in plain

    return says


def _formats(made: Generation) -> bool:
    wanted = made.content.get("response_format")
    return wanted is not None and not (isinstance(wanted, dict) and wanted.get("type") == "text")


def _goes_on_oddly(made: Generation) -> bool:
    """A last message that goes on, and is no text; or one that ends without anything that begins an answer."""
    content = made.content
    if content.get("continue_final_message") is True:
        last = content["messages"][-1]
        return last.get("role") != "assistant" or not isinstance(last.get("content"), str)
    return content.get("add_generation_prompt") is False


def _has_many_prompts(made: Generation) -> bool:
    prompt = made.content.get("prompt")
    return not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(one) is int for one in prompt))


def _has_ids_alone(made: Generation) -> bool:
    """A prompt of token ids goes on with token ids: an engine says those of its answer where it is asked to."""
    says_ids = made.streams and made.content.get("return_token_ids") is True
    return isinstance(made.content.get("prompt"), list) and not says_ids


_REASONS: tuple[tuple[str, Callable[[Generation], bool]], ...] = (
    ("several answers", _says("n", 1)),
    ("several answers", _says("best_of", 1)),
    ("a beam search", _says("use_beam_search")),
    ("log probabilities", _says("logprobs")),
    ("log probabilities", _says("top_logprobs", 0)),
    ("log probabilities", _says("prompt_logprobs")),
    ("the prompt repeated", _says("echo")),
    ("a suffix", _says("suffix", "")),
    ("tools", _says("tools", [])),
    ("tools", _says("functions", [])),
    ("a format", _formats),
    ("a format", _says("structured_outputs")),
    ("a format", lambda made: any(name.startswith("guided_") and made.content[name] for name in made.content)),
    ("a prompt cut short", _says("truncate_prompt_tokens")),
    ("a prompt of embeddings", _says("prompt_embeds")),
    ("a cache handed over", _says("kv_transfer_params")),
    ("an odd last message", lambda made: made.kind is Kind.CHAT and _goes_on_oddly(made)),
    ("several prompts", lambda made: made.kind is Kind.COMPLETION and _has_many_prompts(made)),
    ("a prompt of token ids", lambda made: made.kind is Kind.COMPLETION and _has_ids_alone(made)),
    ("the engine's own bound", lambda made: made.kind is Kind.COMPLETION and made.max_tokens is None),
)
"""What cannot go on at another instance: a part has no grammar, no log probabilities, no tool call of the part before.

Of completions without ``max_tokens`` only the engine knows the bound.
"""
