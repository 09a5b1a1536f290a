"""The OpenAI-style API of a simulated engine, as vLLM speaks it: request bodies, errors, and the bytes of answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from llmrouter.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_LENGTH_TOKENS = 10_000_000
CHARACTERS_PER_TOKEN = 4
CHAT_MESSAGE_TOKENS = 4
"""Tokens that a chat template adds to each message."""
OUTPUT_TEXT = " tok"
"""The text of every output token: as long as a token of text is counted in a prompt."""

TokenCount = Annotated[int, Field(strict=True, ge=1, le=MAX_LENGTH_TOKENS)]


class _Body(BaseModel):
    """Sampling parameters that a simulation has no use for are accepted and ignored, as vLLM does with unknown ones."""

    model_config = ConfigDict(extra="ignore")


class StreamOptions(_Body):
    """What a stream carries besides its tokens."""

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False


class _GenerationBody(_Body):
    model: Annotated[StrictStr, Field(max_length=512)] | None = None
    max_tokens: TokenCount | None = None
    ignore_eos: StrictBool = False
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=1)] = 1

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def usage_always(self) -> bool:
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class CompletionBody(_GenerationBody):
    """``POST /v1/completions``: a prompt as text, as token ids, or as a bare number of tokens."""

    prompt: StrictStr | TokenCount | list[StrictInt]

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt: text counts four characters to the token."""
        if isinstance(self.prompt, str):
            return text_tokens(self.prompt)
        return self.prompt if isinstance(self.prompt, int) else len(self.prompt)


class ContentPart(_Body):
    """One part of a chat message; only text counts."""

    text: StrictStr = ""


class ChatMessage(_Body):
    """One message of a chat."""

    role: Annotated[StrictStr, Field(min_length=1, max_length=64)]
    content: StrictStr | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """The message's text."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(_GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: TokenCount | None = None
    add_generation_prompt: StrictBool = True
    continue_final_message: StrictBool = False

    @property
    def prompt_tokens(self) -> int:
        """Length of the conversation with what the chat template adds.

        A final message that goes on stands where the answer would begin: its template is the answer's.
        """
        tokens = sum(text_tokens(message.text) + CHAT_MESSAGE_TOKENS for message in self.messages)
        return tokens - CHAT_MESSAGE_TOKENS if self.continue_final_message else tokens


def text_tokens(text: str) -> int:
    """Tokens that a text counts for."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Generation:
    """A checked request for tokens. ``max_tokens`` is the client's bound, ``exact`` whether it is also the length."""

    kind: Literal["completion", "chat"]
    model: str | None
    prompt_tokens: int
    max_tokens: int | None
    exact: bool
    stream: bool
    include_usage: bool
    usage_always: bool = False


class BodyError(InvalidRequestError):
    """A body is out of bounds; ``param`` names the field."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


def parse_generation(kind: Literal["completion", "chat"], raw: bytes) -> Generation:
    """Checks a body.

    Raises:
        BodyError: it is not JSON, or a field is missing or out of its bounds.
    """
    try:
        body: CompletionBody | ChatBody = (
            CompletionBody.model_validate_json(raw) if kind == "completion" else ChatBody.model_validate_json(raw)
        )
    except ValidationError as error:
        raise _body_error(error) from error
    max_tokens = body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        max_tokens = body.max_completion_tokens
    if body.ignore_eos and max_tokens is None:
        raise BodyError("ignore_eos needs max_tokens: together they state the output's length", "max_tokens")
    if isinstance(body, ChatBody) and body.continue_final_message and body.add_generation_prompt:
        raise BodyError(
            "continue_final_message and add_generation_prompt cannot both be true", "continue_final_message"
        )
    if body.prompt_tokens < 1:
        raise BodyError("the prompt is empty", "prompt")
    return Generation(
        kind=kind,
        model=body.model,
        prompt_tokens=body.prompt_tokens,
        max_tokens=max_tokens,
        exact=body.ignore_eos,
        stream=body.stream,
        include_usage=body.include_usage,
        usage_always=body.usage_always,
    )


def _body_error(error: ValidationError) -> BodyError:
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    if field == "prompt" and first["type"] != "missing":  # each kind of prompt has an error of its own: say all at once
        kinds = f"must be text, a list of token ids, or a number of tokens from 1 to {MAX_LENGTH_TOKENS}"
        return BodyError(f"prompt: {kinds}", field)
    where = ".".join(str(part) for part in first["loc"])
    return BodyError(f"{where}: {first['msg']}" if where else first["msg"], field)


def error_body(message: str, *, kind: str, param: str | None, code: int) -> dict[str, object]:
    """OpenAI's error object as vLLM fills it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer's identity and length, which is all its bytes depend on."""

    answer_id: str
    model: str
    created_at_s: int
    generation: Generation
    answer_tokens: int
    finish_reason: Literal["length", "stop"]

    @property
    def usage(self) -> dict[str, int]:
        """The usage object."""
        return self.usage_after(self.answer_tokens)

    def usage_after(self, tokens: int) -> dict[str, int]:
        """The usage object when there are so many output tokens."""
        prompt = self.generation.prompt_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}


@dataclass(frozen=True, slots=True)
class StreamBytes:
    """A streamed answer, formatted once: every token but the first and the last has the same bytes.

    ``first`` and ``token`` are framed for HTTP/1.1 chunked transfer; ``last``, which ends the body, is not. ``nth``
    gives a token's bytes in place of ``token`` where each says how many there are.
    """

    first: bytes
    token: bytes
    last: bytes
    nth: Callable[[int], bytes] | None = None


def stream_bytes(answer: Answer) -> StreamBytes:
    """Formats a streamed answer: one event per token, then usage where asked for, then ``[DONE]``."""
    is_counted = answer.generation.usage_always

    def token(number: int, finish_reason: str | None = None) -> bytes:
        return _event(_token_choice(answer, finish_reason), answer, counted=number if is_counted else None)

    role = b""
    if answer.generation.kind == "chat":
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        role = _event(choice, answer, counted=0 if is_counted else None)
    last = token(answer.answer_tokens, answer.finish_reason)
    if answer.answer_tokens == 1:
        last = role + last
    if answer.generation.include_usage:
        last += _event(None, answer, counted=answer.answer_tokens)
    return StreamBytes(
        first=_chunk(role + token(1)),
        token=_chunk(token(1)),
        last=last + b"data: [DONE]\n\n",
        nth=(lambda number: _chunk(token(number))) if is_counted else None,
    )


def whole_body(answer: Answer) -> dict[str, object]:
    """The answer of a request that does not stream."""
    text = OUTPUT_TEXT * answer.answer_tokens
    choice: dict[str, object] = {"index": 0, "logprobs": None, "finish_reason": answer.finish_reason}
    if answer.generation.kind == "chat":
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {**_head(answer, streamed=False), "choices": [choice], "usage": answer.usage}


def _token_choice(answer: Answer, finish_reason: str | None) -> dict[str, object]:
    if answer.generation.kind == "chat":
        return {"index": 0, "delta": {"content": OUTPUT_TEXT}, "logprobs": None, "finish_reason": finish_reason}
    return {"index": 0, "text": OUTPUT_TEXT, "logprobs": None, "finish_reason": finish_reason}


def _head(answer: Answer, *, streamed: bool) -> dict[str, Any]:
    names = {"chat": "chat.completion.chunk" if streamed else "chat.completion", "completion": "text_completion"}
    return {
        "id": answer.answer_id,
        "object": names[answer.generation.kind],
        "created": answer.created_at_s,
        "model": answer.model,
    }


def _event(choice: Mapping[str, object] | None, answer: Answer, *, counted: int | None) -> bytes:
    """One event; ``counted`` are the output tokens that it says there are."""
    body: dict[str, object] = {**_head(answer, streamed=True), "choices": [choice] if choice is not None else []}
    if counted is not None:
        body["usage"] = answer.usage_after(counted)
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
