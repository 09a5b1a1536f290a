"""What becomes of an engine's answer, or of the answers of several, on its way to the client.

An answer is made in one part or more, each from one instance. ``begin_part`` comes before each; ``feed`` takes bytes as
they come and returns what the client gets of them now; ``end_part`` comes after each, and says whether that was all.
``close`` gives the last bytes of an answer that is whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from router_grpc.openai.events import event_of, json_bytes, object_of
from router_grpc.openai.generation import Kind, Produced, given_text
from router_grpc.openai.tallies import Tally
from router_grpc.picker.usage import AnswerScan

if TYPE_CHECKING:
    from typing import Any


HEAD = ("id", "created", "model")
"""What is the same for a whole answer: the first part's."""


class PartEnd(Enum):
    """How a part has ended: the answer is whole, the next slice is due, or it broke off."""

    WHOLE = auto()
    MORE = auto()
    BROKEN = auto()


@dataclass(frozen=True, slots=True)
class PartUsage:
    """Tokens of one part; ``None`` where its engine did not say."""

    output_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


class Answer(Protocol):
    """See the module's docstring."""

    sends_at_once: bool
    """Whether the client's answer begins with the first bytes of ``feed``, and not with those of ``close``."""

    @property
    def has_begun(self) -> bool:
        """Whether an engine's first token is there, in this part."""
        ...

    @property
    def is_seen(self) -> bool:
        """Whether the client has something of the answer that cannot be made again."""
        ...

    @property
    def why_whole(self) -> str:
        """Why what there is cannot go on elsewhere; empty where it can."""
        ...

    @property
    def produced(self) -> Produced:
        """What there is of the answer."""
        ...

    @property
    def part(self) -> PartUsage:
        """Tokens of the part under way."""
        ...

    def begin_part(self, slice_tokens: int | None) -> None:
        """A part begins; after ``slice_tokens`` another one follows, ``None`` for as many as there are."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """The next bytes of the part; raises EventTooLongError."""
        ...

    def end_part(self, *, broke: bool) -> PartEnd:
        """The part has ended; ``broke`` says that the connection ended before it."""
        ...

    def between(self) -> bytes:
        """What the client gets of a slice after its end, where another one follows."""
        ...

    def close(self) -> bytes:
        """The last bytes of a whole answer."""
        ...

    def error(self, said: dict[str, Any]) -> bytes:
        """What tells a client within its answer that there is no more."""
        ...


class PassedAnswer:
    """An answer of which nothing is kept: it goes on byte for byte, and what has been seen cannot be made again."""

    sends_at_once = True
    produced = Produced()
    why_whole = "a path whose answers are not made in parts"

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._scan = AnswerScan(is_stream=is_stream)
        self.is_seen = False

    @property
    def has_begun(self) -> bool:
        """See ``Answer``; of what is no stream no first token is seen."""
        return self._is_stream and self._scan.has_begun

    @property
    def part(self) -> PartUsage:
        """See ``Answer``."""
        usage = self._scan.usage
        return PartUsage(self._scan.output_tokens, usage.prompt_tokens, usage.cached_tokens)

    def begin_part(self, _slice_tokens: int | None) -> None:
        """See ``Answer``."""
        self._scan = AnswerScan(is_stream=self._is_stream)

    def feed(self, chunk: bytes) -> bytes:
        """See ``Answer``."""
        self._scan.feed(chunk)
        self.is_seen = self.is_seen or bool(chunk)
        return chunk

    def end_part(self, *, broke: bool) -> PartEnd:
        """See ``Answer``."""
        self._scan.end()
        return PartEnd.BROKEN if broke else PartEnd.WHOLE

    def between(self) -> bytes:
        """See ``Answer``."""
        return b""

    def close(self) -> bytes:
        """See ``Answer``."""
        return b""

    def error(self, said: dict[str, Any]) -> bytes:
        """Of a stream an event; what another body says there would be no error but rubbish."""
        return b"\n\n" + event_of(said) if self._is_stream else b""


class WholeAnswer:
    """An answer that is one JSON object: the client gets it when it is whole."""

    sends_at_once = False
    has_begun = is_seen = False
    why_whole = ""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._tally = Tally()
        self._bytes = bytearray()
        self._slice_tokens: int | None = None
        self._said: dict[str, Any] | None = None
        self._first: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._owed = ""

    @property
    def produced(self) -> Produced:
        """See ``Answer``."""
        text = "".join(self._texts)
        anew = given_text(self._kind, text)[1]
        return Produced(text, self._tally.produced if text else 0, None, len(anew))

    @property
    def part(self) -> PartUsage:
        """See ``Answer``."""
        return PartUsage(self._tally.said, self._tally.part_prompt_tokens, self._tally.part_cached_tokens)

    def begin_part(self, slice_tokens: int | None) -> None:
        """See ``Answer``."""
        self._tally.next_part(keeps=bool(self._texts))
        self._bytes.clear()
        self._slice_tokens = slice_tokens
        self._owed = given_text(self._kind, self.produced.text)[1]

    def feed(self, chunk: bytes) -> bytes:
        """See ``Answer``."""
        self._bytes += chunk
        return b""

    def end_part(self, *, broke: bool) -> PartEnd:
        """See ``Answer``."""
        if broke:
            return PartEnd.BROKEN
        said = self._said = object_of(self._bytes)
        self._tally.note(None if said is None else said.get("usage"))
        if self._slice_tokens is None and self._first is None:
            return PartEnd.WHOLE
        text = self._text_of(said)
        if said is None or text is None:
            return PartEnd.BROKEN if self._first is not None else PartEnd.WHOLE
        self._first = self._first or said
        self._texts.append(text.removeprefix(self._owed))
        full = self._slice_tokens is not None and (self._tally.said or 0) >= self._slice_tokens
        return PartEnd.MORE if full and said["choices"][0].get("finish_reason") == "length" else PartEnd.WHOLE

    def between(self) -> bytes:
        """See ``Answer``."""
        return b""

    def close(self) -> bytes:
        """See ``Answer``: the engine's own bytes where one made it whole."""
        first, last = self._first, self._said
        if first is None or last is None or first is last:
            return bytes(self._bytes)
        text = "".join(self._texts)
        choice = dict(last["choices"][0])
        if self._kind is Kind.CHAT:
            choice["message"] = {**choice["message"], "content": text}
        else:
            choice["text"] = text
        head = {name: first[name] for name in HEAD if name in first}
        return json_bytes({**last, **head, "choices": [choice], "usage": self._tally.usage()})

    def error(self, said: dict[str, Any]) -> bytes:
        """See ``Answer``; never asked for, as nothing of it is there before it is whole."""
        return json_bytes(said)

    def _text_of(self, said: dict[str, Any] | None) -> str | None:
        choices = (said or {}).get("choices")
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            return None
        message = choices[0].get("message") if self._kind is Kind.CHAT else choices[0]
        text = message.get("content" if self._kind is Kind.CHAT else "text") if isinstance(message, dict) else None
        return text if isinstance(text, str) else None
