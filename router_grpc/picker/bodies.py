"""What routing needs of a request's body, by its path.

OpenAI's chat, completions, responses and embeddings, Anthropic's messages. A body is read, never written: what goes on
to the engine are the client's bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmrouter.errors import InvalidRequestError
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHOWN = 64
MAX_VALUES = 1_000_000
"""Of a body; read, each takes about 60 bytes of memory. Counted are commas and brackets, those of texts as well."""

MAX_NUMBER = 10**300
"""A whole number that is larger counts as this: a float takes no more."""


@quick
@dataclass(frozen=True, slots=True)
class Asked:
    """A request for tokens. ``prompt`` is its text, in the order that the engine sees it, without a chat template.

    ``prompt_tokens`` of 0 are not known: they are counted from ``prompt``.
    """

    model: str
    prompt: bytes = field(default=b"", repr=False)
    prompt_tokens: int = 0
    max_output_tokens: int = 0
    temperature: float | None = None
    tools: int | None = None
    stop: int | None = None
    turn: int | None = None
    streams: bool = False
    cache_salt: str = ""


def asked_of(path: str, body: bytes) -> Asked | None:
    """What is asked for; ``None`` where the path is not one that makes tokens, whatever its body.

    Raises:
        InvalidRequestError: the body is no JSON object, or a field that routing needs is missing or of a wrong type.
    """
    return asked_in(path, content_of(body)) if makes_tokens(path) else None


def content_of(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; raises InvalidRequestError where it is none, or of very many values."""
    if len(body) > MAX_VALUES and sum(map(body.count, _VALUES)) > MAX_VALUES:
        raise InvalidRequestError(f"body: more than about {MAX_VALUES} values")
    try:
        content = read_json(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"body: not JSON ({str(error)[:SHOWN]})") from None
    if not isinstance(content, dict):
        raise InvalidRequestError("body: must be a JSON object")
    return content


def read_json(raw: bytes) -> Any:  # noqa: ANN401 - whatever it is
    """The value that JSON is, in any of its encodings; raises ValueError or RecursionError where it is none."""
    return json.loads(raw.decode() if raw.isascii() and 0 not in raw[:4] else raw)


def asked_in(path: str, content: dict[str, Any]) -> Asked | None:
    """As ``asked_of``, of a body that is read already."""
    read = _reader(path)
    return None if read is None else read(content)


def makes_tokens(path: str) -> bool:
    """Whether a path is one of those that are read."""
    return _reader(path) is not None


@lru_cache(maxsize=1024)
def _reader(path: str) -> Callable[[dict[str, Any]], Asked] | None:
    bare = path.split("?", 1)[0].rstrip("/")
    return next((read for ending, read in _READERS if bare.endswith(ending)), None)


def _chat(content: dict[str, Any]) -> Asked:
    messages = _list(content, "messages")
    texts = [text for message in messages for text in _texts(_member(message, "messages[]"))]
    return _asked(
        content,
        prompt="\n".join(texts),
        limits=("max_completion_tokens", "max_tokens"),
        turn=sum(1 for one in messages if isinstance(one, dict) and one.get("role") == "user"),
    )


def _completion(content: dict[str, Any]) -> Asked:
    prompt, tokens = _prompt_of(content.get("prompt", ""), "prompt")
    return _asked(content, prompt=prompt, limits=("max_tokens",), prompt_tokens=tokens)


def _response(content: dict[str, Any]) -> Asked:
    given = content.get("input", "")
    texts = [str(content["instructions"])] if isinstance(content.get("instructions"), str) else []
    if isinstance(given, str):
        texts.append(given)
    elif isinstance(given, list):
        texts += [text for one in given for text in _texts(_member(one, "input[]"))]
    else:
        raise InvalidRequestError("input: must be text or a list")
    return _asked(content, prompt="\n".join(texts), limits=("max_output_tokens",))


def _messages(content: dict[str, Any]) -> Asked:
    system = list(_texts({"content": content.get("system", "")}))
    texts = [text for message in _list(content, "messages") for text in _texts(_member(message, "messages[]"))]
    return _asked(content, prompt="\n".join([*system, *texts]), limits=("max_tokens",), stop="stop_sequences")


def _embeddings(content: dict[str, Any]) -> Asked:
    prompt, tokens = _prompt_of(content.get("input", ""), "input")
    found = _asked(content, prompt=prompt, limits=(), prompt_tokens=tokens)
    return Asked(found.model, found.prompt, found.prompt_tokens, max_output_tokens=1)


_VALUES = (b",", b"[", b"{")

_READERS: tuple[tuple[str, Callable[[dict[str, Any]], Asked]], ...] = (
    ("/chat/completions", _chat),
    ("/completions", _completion),
    ("/responses", _response),
    ("/messages", _messages),
    ("/embeddings", _embeddings),
)
"""By the end of the path: gateways may put a prefix of their own before it."""


def _asked(
    content: dict[str, Any],
    *,
    prompt: str,
    limits: tuple[str, ...],
    prompt_tokens: int = 0,
    turn: int | None = None,
    stop: str = "stop",
) -> Asked:
    model = content.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError("model: must be set")
    return Asked(
        model=model,
        prompt=prompt.encode("utf-8", "replace"),
        prompt_tokens=prompt_tokens,
        max_output_tokens=next((limit for name in limits if (limit := _count(content, name))), 0),
        temperature=_number(content, "temperature"),
        tools=len(content["tools"]) if isinstance(content.get("tools"), list) else None,
        stop=_stops(content.get(stop)),
        turn=turn,
        streams=content.get("stream") is True,
        cache_salt=salt if isinstance(salt := content.get("cache_salt"), str) else "",
    )


def _prompt_of(value: object, name: str) -> tuple[str, int]:
    """Text and, where token ids are given, their number; several prompts count as one."""
    if isinstance(value, str):
        return value, 0
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name}: must be text or a list")
    if all(isinstance(one, int) for one in value):
        return "", len(value)
    if all(isinstance(one, str) for one in value):
        return "\n".join(value), 0
    if all(isinstance(one, list) for one in value):
        return "", sum(len(one) for one in value)
    raise InvalidRequestError(f"{name}: must be text, token ids, or a list of either")


def _texts(message: dict[str, Any]) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, str):
                yield part
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def _list(content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, list) or not value:
        raise InvalidRequestError(f"{name}: must be a list that is not empty")
    return value


def _member(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name}: must be objects")
    return value


def _count(content: dict[str, Any], name: str) -> int:
    value = content.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequestError(f"{name}: must be a whole number of at least 0")
    return value


def _number(content: dict[str, Any], name: str) -> float | None:
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequestError(f"{name}: must be a number")
    return float(min(max(value, -MAX_NUMBER), MAX_NUMBER)) if isinstance(value, int) else value


def _stops(value: object) -> int | None:
    if isinstance(value, str):
        return 1
    return len(value) if isinstance(value, list) else None
