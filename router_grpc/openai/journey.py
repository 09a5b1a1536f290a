"""Which instances a request has been at, and whether it may go on at another after a failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.errors import LLMRouterError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.listener_specs import OpenAISpec
    from router_grpc.openai.answers import Answer

ANEW = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses of an answer that another instance may have a better one than; others speak of the request itself."""

FAULT_FROM = 500


class Cause(StrEnum):
    """Why a part ended before its answer did: the label of ``llmrouter_resumes_total``."""

    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    BROKEN = "broken"
    STALLED = "stalled"
    DRAINED = "drained"
    LATE = "late"


MOVES = frozenset({Cause.DRAINED, Cause.LATE})
"""Causes that are the router's own will: nobody is to blame."""


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """An answer of an engine that is none, to be passed on if nobody has a better one."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class InstanceFailedError(LLMRouterError):
    """A part failed at its instance. ``answer`` is what the engine said, ``None`` where it said nothing."""

    reason = "InstanceFailed"

    def __init__(self, cause: Cause, message: str, *, answer: EngineAnswer | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.answer = answer

    @property
    def is_fault(self) -> bool:
        """Whether the instance is to blame."""
        return self.cause not in MOVES and (self.answer is None or self.answer.status >= FAULT_FROM)

    @property
    def is_final(self) -> bool:
        """Whether another instance would say the same."""
        return self.answer is not None and self.answer.status not in ANEW


@dataclass(slots=True)
class Journey:
    """Of one request; ``rules`` are those in force when it came."""

    rules: OpenAISpec
    excluded: set[str] = field(default_factory=set)
    resumes: int = 0
    has_been_late: bool = False
    last_instance_id: str = ""
    last: InstanceFailedError | None = None
    """The failure after which it went on: what its client is told where there is no place to go on at."""

    @property
    def may_move(self) -> bool:
        """Whether a request that has not begun may be sent to another instance at all."""
        return self.rules.resume != "None" and self.resumes < self.rules.max_resumes

    def why_not(self, answer: Answer, error: InstanceFailedError) -> str:
        """Why a request cannot go on after a failure; empty where it can."""
        if error.is_final:
            return "the request itself is refused"
        if self.rules.resume == "None":
            return "nothing is resumed"
        if self.resumes >= self.rules.max_resumes:
            return f"resumed {self.resumes} times already"
        if not answer.is_seen:
            return ""
        if self.rules.resume != "Tokens":
            return "part of the answer has been sent"
        return f"an answer with {why} cannot go on elsewhere" if (why := answer.why_whole) else ""

    def forgives(self) -> bool:
        """Nothing else is ready: whether one that failed the request before the last one did may have it again."""
        before = self.excluded - {self.last_instance_id}
        self.excluded -= before
        return bool(before)

    def goes_on(self, instance_id: str, error: InstanceFailedError) -> None:
        """The request leaves an instance for another."""
        self.excluded.add(instance_id)
        self.last_instance_id = instance_id
        self.resumes += 1
        self.has_been_late = self.has_been_late or error.cause is Cause.LATE
        self.last = error
