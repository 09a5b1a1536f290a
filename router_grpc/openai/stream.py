"""A streamed answer that several instances make in turn, as one stream of events.

The client gets every token once: an event that is not whole when its connection breaks is dropped, the next part begins
where the events that went on ended. Identity, role, usage and end are those of one answer.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from router_grpc.openai.answers import HEAD, PartEnd, PartUsage
from router_grpc.openai.events import DONE, DONE_EVENT, EventCutter, data_of, event_of, object_of
from router_grpc.openai.generation import Generation, Kind, Produced, given_text
from router_grpc.openai.tallies import Tally

GIVEN_UP = frozenset({"abort", "error"})
"""Ends of an answer that its engine gave up."""

_LAST_USAGE = re.compile(rb',\s*"usage":\s*(?:null|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})(?=\s*\}\r?\n)')
_NO_END = (b'"finish_reason":null', b'"finish_reason": null')
_NO_USAGE = (b'"usage":null', b'"usage": null')

PLAIN = frozenset({"role", "content", "token_ids"})
"""What a delta may carry that another engine can be given back as text."""


class StreamAnswer:
    """See the module's docstring, and ``Answer``.

    While one instance makes them all, events go on as they came; but where not ``is_plain``, without the usage that the
    client did not ask for. Those of later ones are written anew.
    """

    sends_at_once = True

    def __init__(self, generation: Generation, *, is_plain: bool) -> None:
        self._generation = generation
        self._is_plain = is_plain
        self._cutter = EventCutter()
        self._tally = Tally()
        self._texts: list[str] = []
        self._counts: list[int] = []
        """Tokens of each of the texts, as the tally counts them."""
        self._token_ids: list[int] | None = []
        self._owed = ""
        self._head: dict[str, Any] = {}
        self._is_later = self._has_role = self._has_content = self._is_odd = False
        self._is_several = generation.content.get("n") not in (None, 1)
        self._slice_tokens: int | None = None
        self._finish: str | None = None
        self._held: dict[str, Any] | None = None
        self._usage_event: tuple[bytes, dict[str, Any]] | None = None
        self._done = self._error = b""
        self._counted = 0
        self.has_begun = False

    @property
    def is_seen(self) -> bool:
        """See ``Answer``."""
        return self._has_content

    @property
    def why_whole(self) -> str:
        """See ``Answer``."""
        if self._is_odd:
            return "more than text has been said"
        if self._generation.kind is Kind.COMPLETION and self._needs_ids and self._token_ids is None:
            return "a prompt of token ids, and the engine does not say its own"
        return self._generation.why_whole

    @property
    def _needs_ids(self) -> bool:
        return isinstance(self._generation.content.get("prompt"), list)

    @property
    def produced(self) -> Produced:
        """See ``Answer``."""
        ids = None if self._token_ids is None else tuple(self._token_ids)
        text = "".join(self._texts)
        return Produced(text, self._tally.produced - self._tokens_anew if text else 0, ids, self._tokens_anew)

    @property
    def _tokens_anew(self) -> int:
        """Tokens of the white space at the end of the text, which the next part makes anew."""
        if self._generation.kind is Kind.COMPLETION:
            return 0
        pairs = zip(reversed(self._texts), reversed(self._counts), strict=True)
        return sum(tokens for _, tokens in takewhile(lambda pair: pair[0].isspace(), pairs))

    def _made_anew(self) -> int:
        """As ``_tokens_anew``, which are counted by the part that makes them from now on."""
        anew = self._tokens_anew
        for at in range(len(self._texts) - 1, -1, -1):
            if not anew or not self._texts[at].isspace():
                break
            self._counts[at] = 0
        return anew

    @property
    def part(self) -> PartUsage:
        """See ``Answer``."""
        tally = self._tally
        return PartUsage(tally.part or None, tally.part_prompt_tokens, tally.part_cached_tokens)

    def begin_part(self, slice_tokens: int | None) -> None:
        """See ``Answer``."""
        text = "".join(self._texts)
        self._owed = given_text(self._generation.kind, text)[1]
        self._tally.next_part(keeps=bool(text), without=self._made_anew())
        self._cutter = EventCutter()
        self._is_later = bool(self._head)
        self._slice_tokens = slice_tokens
        self._finish = self._held = self._usage_event = None
        self._done = self._error = b""
        self._counted = 0
        self.has_begun = False

    def feed(self, chunk: bytes) -> bytes:
        """See ``Answer``."""
        return b"".join([self._take(event) for event in self._cutter.feed(chunk)])

    def end_part(self, *, broke: bool) -> PartEnd:
        """See ``Answer``. A connection that breaks after the end of the text broke nothing."""
        del broke
        if self._error:
            return PartEnd.BROKEN
        limit = self._generation.max_tokens
        if not self._done and (self._finish is None or self._is_several):
            if self._is_several or limit is None or self._tally.produced < limit:
                return PartEnd.BROKEN
            self._held = self._choice_event("length")  # the engine died between the last token and saying so
            return PartEnd.WHOLE
        is_full = self._tally.said is None or self._tally.part >= (self._slice_tokens or 0)
        return PartEnd.MORE if self._held is not None and is_full else PartEnd.WHOLE

    def between(self) -> bytes:
        """See ``Answer``: the slice's last token, which was not the last of all."""
        held, self._held = self._held, None
        if held is None or not self._carries(held["choices"][0]):
            return b""
        held["choices"][0]["finish_reason"] = None
        held["choices"][0].pop("stop_reason", None)
        return event_of(held)

    def close(self) -> bytes:
        """See ``Answer``: the held end, usage where it was asked for, and the last event."""
        last = [] if self._held is None else [event_of(self._held)]
        is_rewritten = self._is_later or not self._is_plain
        if not is_rewritten and self._usage_event is not None:
            last.append(self._usage_event[0])
        elif self._generation.wants_usage and (usage := self._tally.usage()) is not None:
            like = self._choice_event(None) if self._usage_event is None else self._usage_event[1]
            last.append(event_of({**like, **self._head, "choices": [], "usage": usage}))
        return b"".join([*last, self._done or DONE_EVENT])

    def error(self, said: dict[str, Any]) -> bytes:
        """See ``Answer``; what the engine itself said of it goes first. No last event follows: this is no end."""
        return self._error or event_of(said)

    def _take(self, event: bytes) -> bytes:
        """What the client gets of an event now; one that is no part of an answer goes on as it is."""
        if self._error:
            return b""
        if self._is_plain and self._has_content and not self._is_later and _says_a_token_alone(event):
            self._tally.events += 1
            return event
        data = data_of(event)
        if data == DONE:
            self._done = event
            return b""
        said = object_of(data)
        if said is not None and said.get("error"):
            self._error = event
            return b""
        return event if said is None else self._take_said(event, said)

    def _take_said(self, event: bytes, said: dict[str, Any]) -> bytes:
        choices = said.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            return event
        self._tally.note(said.get("usage"))
        self._head = self._head or {name: said[name] for name in HEAD if name in said}
        if choices:
            return self._take_choice(event, said, choices[0])
        self._usage_event = (event, said)
        return b""

    def _take_choice(self, event: bytes, said: dict[str, Any], choice: dict[str, Any]) -> bytes:
        said_end = choice.get("finish_reason")
        finish = said_end if isinstance(said_end, str) else None
        if finish in GIVEN_UP:
            self._error = event
            return b""
        carries = self._carries(choice)
        if carries or finish:
            self.has_begun = self._has_content = True
            self._tally.events += carries
        elif self._is_later and self._has_role:
            return b""  # the role, again
        self._has_role = True
        self._note(choice)
        self._finish = finish or self._finish
        if finish == "length" and self._slice_tokens is not None:
            self._held = self._written(said)
            return b""
        if self._is_plain and not self._is_later:
            return event
        if not self._is_later and not self._generation.wants_usage_always and (cut := _without_usage(event)):
            return cut
        return event_of(self._written(said))

    def _note(self, choice: dict[str, Any]) -> None:
        """Keeps what the choice adds to the text, without white space that is there already; ``choice`` is changed."""
        delta = choice.get("delta") if self._generation.kind is Kind.CHAT else choice
        if not isinstance(delta, dict):
            return
        name = "content" if self._generation.kind is Kind.CHAT else "text"
        text = delta.get(name)
        if isinstance(text, str) and text:
            if self._owed:
                text = delta[name] = self._without_owed(text)
            if text:
                self._texts.append(text)
                self._counts.append(0)
            self._counts[-1] += self._tally.part - self._counted
            self._counted = self._tally.part
        ids = choice.get("token_ids")
        if self._token_ids is not None and isinstance(ids, list):
            self._token_ids += ids
        elif text:
            self._token_ids = None
        if delta is not choice and not delta.keys() <= PLAIN and any(delta[key] for key in delta.keys() - PLAIN):
            self._is_odd = True

    def _without_owed(self, text: str) -> str:
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, self._owed, strict=False)))
        self._owed = self._owed[common:] if common == len(text) else ""
        return text[common:]

    def _carries(self, choice: dict[str, Any]) -> bool:
        """Whether a choice has a token, be its text empty; the role alone is none."""
        if self._generation.kind is Kind.COMPLETION:
            return bool(choice.get("text")) or not choice.get("finish_reason")
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return False
        return bool(delta.get("content")) or any(value for key, value in delta.items() if key != "role")

    def _written(self, said: dict[str, Any]) -> dict[str, Any]:
        """The event as it is said of the whole answer."""
        said.update(self._head)
        usage = self._tally.usage()
        if self._generation.wants_usage_always and usage is not None:
            said["usage"] = usage
        elif "usage" in said:
            del said["usage"]
        if self._is_later and self._generation.kind is Kind.CHAT and isinstance(said["choices"][0].get("delta"), dict):
            said["choices"][0]["delta"].pop("role", None)
        return said

    def _choice_event(self, finish: str | None) -> dict[str, Any]:
        """An event without a token, by an answer whose engine is gone."""
        is_chat = self._generation.kind is Kind.CHAT
        choice: dict[str, Any] = {"index": 0, **({"delta": {}} if is_chat else {"text": ""}), "finish_reason": finish}
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        return {"object": kind, **self._head, "choices": [choice]}


def _without_usage(event: bytes) -> bytes:
    """The event without the usage that stands last in it; empty where none does."""
    cut, times = _LAST_USAGE.subn(b"", event)
    return cut if times == 1 else b""


def _says_a_token_alone(event: bytes) -> bool:
    """Whether an event is surely one of a token, by its bytes: quotes within a text are not bare."""
    has_usage = b'"usage"' in event and not any(one in event for one in _NO_USAGE)
    return any(one in event for one in _NO_END) and not has_usage and b'"error"' not in event
