"""One decision in words: who was considered, why this instance, what was expected, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.decisions.record import ConsideredInstance, DecisionRecord

SAME = 0.1
"""Within this share of what was foretold, what came counts as foretold."""

LEAST_HELD_S = 0.005
"""Seconds that a request takes at a router without being held."""

MILLISECONDS_TO = 1.0
"""Seconds below which times are told in milliseconds."""


@dataclass(frozen=True, slots=True)
class Told:
    """A decision as it is told, a sentence or two for each question."""

    asked: str
    considered: str
    why: str
    foretold: str
    came: str
    remarks: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it, in order."""
        return tuple(one for one in (self.asked, self.considered, self.why, self.foretold, self.came) if one) + (
            self.remarks
        )


def told(record: DecisionRecord) -> Told:
    """A record in words."""
    return Told(_asked(record), _considered(record), _why(record), _foretold(record), _came(record), _remarks(record))


def seconds(value: float | None) -> str:
    """A time as people say it."""
    if value is None:
        return "unknown"
    return f"{value * 1000:.3g} ms" if value < MILLISECONDS_TO else f"{value:.3g} s"


def _asked(record: DecisionRecord) -> str:
    of = f" of application {record.application}" if record.application else ""
    kind = " batch" if record.batch else ""
    return (
        f"A{kind} request{of} for model {record.model}: {record.prompt_tokens} prompt tokens, "
        f"{record.predicted_output_tokens:.0f} output tokens expected."
    )


def _considered(record: DecisionRecord) -> str:
    if record.eligible == 0:
        return "No instance served the model."
    shown = len(record.candidates)
    more = f"; {shown} of them are described" if shown < record.eligible else ""
    return f"{record.roomy} of {record.eligible} instances that served the model had room{more}."


def _why(record: DecisionRecord) -> str:
    by = record.policy.decided_by
    declared = f"policy {record.policy.name} ({record.policy.type})"
    if record.chosen is None:
        return f"It was turned away by {declared}: {record.reason}."
    if record.policy.fallback_reason is not None:
        said = f"{by}, the fallback, decided in place of {declared}, because of {record.policy.fallback_reason}"
    else:
        said = f"{declared[0].upper()}{declared[1:]} decided"
    chosen = record.candidate(record.chosen)
    if record.explored and record.candidates and record.candidates[0].id == record.chosen:
        return f"{said} to explore: {record.chosen} was drawn among all {record.roomy} with room, whatever its score."
    if record.candidates and record.candidates[0].id != record.chosen:
        first = record.candidates[0].id
        return (
            f"{said} for {first}, which had taken another request by the time of the reservation: "
            f"{record.chosen} was the next one that still had room."
        )
    return f"{said} for {record.chosen}{_by_score(record, chosen)}."


def _by_score(record: DecisionRecord, chosen: ConsideredInstance | None) -> str:
    if chosen is None or chosen.score is None:
        return ""
    others = [one for one in record.candidates if one.id != chosen.id and one.score is not None]
    tied = [one for one in others if one.score == chosen.score]
    if tied:
        return f": it and {len(tied)} more scored {chosen.score:.4g}, the lowest, and one of them was drawn"
    if not others:
        return f": it scored {chosen.score:.4g} and was the only one"
    following = min(others, key=lambda one: one.score or 0.0)
    return f": it scored {chosen.score:.4g}, the lowest; the next was {following.id} with {following.score:.4g}"


def _foretold(record: DecisionRecord) -> str:
    if record.foretold is None:
        return ""
    return (
        f"From its dispatch there the first token was expected after {seconds(record.foretold.ttft_s)}, "
        f"the end after {seconds(record.foretold.e2e_s)}."
    )


def _came(record: DecisionRecord) -> str:
    outcome = record.outcome
    if outcome is None:
        return "It is still under way."
    if outcome.kind == "Refused":
        return ""
    if outcome.kind != "Finished":
        word = {"Failed": "It failed", "Cancelled": "Its client left", "Lost": "Nobody reported how it ended"}
        why = f" ({outcome.reason})" if outcome.reason else ""
        after = "" if outcome.ttft_s is None else f", its first token having come after {seconds(outcome.ttft_s)}"
        return f"{word[outcome.kind]}{why}{after}."
    tokens = "" if outcome.output_tokens is None else f" with {outcome.output_tokens} tokens"
    first = "" if outcome.ttft_s is None else f", the first after {seconds(outcome.ttft_s)}"
    ended = f"It ended{tokens} {seconds(outcome.e2e_s)} after its arrival{first}"
    return f"{ended}{_against(record)}."


def _against(record: DecisionRecord) -> str:
    """How that compares with what was foretold, from dispatch on."""
    foretold, outcome = record.foretold, record.outcome
    if foretold is None or outcome is None or outcome.e2e_s is None or foretold.e2e_s <= 0.0:
        return ""
    ratio = max(0.0, outcome.e2e_s - record.held_s) / foretold.e2e_s
    if abs(ratio - 1.0) <= SAME:
        return ": as foretold"
    return f": {ratio:.2g} times as long as foretold"


def _remarks(record: DecisionRecord) -> tuple[str, ...]:
    chosen = record.candidate(record.chosen)
    remarks = []
    if record.held_s > LEAST_HELD_S:
        remarks.append(f"It was held at the router for {seconds(record.held_s)} first.")
    if chosen is not None and chosen.cached_tokens:
        remarks.append(f"{chosen.cached_tokens} of its prompt tokens were probably cached there.")
    if record.prefill:
        remarks.append(f"Its prompt was computed at {record.prefill}.")
    if record.policy.actions:
        remarks.append(f"The guard changed the answer: {', '.join(record.policy.actions)}.")
    if record.degraded:
        remarks.append("The shared ledger was away: the router went by its own counts.")
    if record.served is not None:
        remarks.append(f"The gateway sent it elsewhere: {record.served}.")
    if record.arm != "current":
        remarks.append(f"It belongs to the arm {record.arm}.")
    if chosen is not None and chosen.propensity is not None and record.policy.exploration_fraction > 0.0:
        remarks.append(f"The choice had a probability of {chosen.propensity:.3g}.")
    return tuple(remarks)
