"""The life of a candidate: what leads from one phase to the next, and what never does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.arms import arm

from llmrouter.resource_types import NameRef
from llmrouter.rollout.life import Before, Declared, Heard, Life, Phase, Why, step
from llmrouter.rollout.verdict import Verdict, verdict
from llmrouter.rollout_specs import AutoPromoteSpec, CandidateSpec, GuardrailsSpec

LOOSE = GuardrailsSpec(
    max_ttft_ratio=2, max_tpot_ratio=2, max_e2e_ratio=2, max_error_fraction_increase=0.5, min_requests=30
)


def compared(times: float, count: int, rules: GuardrailsSpec = LOOSE) -> Verdict:
    return verdict(arm(1.0, 5 * count), arm(times, count), rules)


def declared(**changes: Any) -> Declared:  # noqa: ANN401 - any field
    spec = CandidateSpec(policy_ref=NameRef(name="next"), mode="Canary", guardrails=LOOSE)
    spec = spec.model_copy(
        update={name: changes.pop(name) for name in list(changes) if name in type(spec).model_fields}
    )
    return Declared(spec, **({"digest": "sha256:b", "against": "sha256:a"} | changes))


def heard(**changes: Any) -> Heard:  # noqa: ANN401 - any field
    return replace(Heard(voices=2, running=2, verdict=compared(1.0, 0)), **changes)


def at(minute: int) -> str:
    return f"2026-01-01T{minute // 60:02}:{minute % 60:02}:00Z"


def before(life: Life, what: Declared) -> Before:
    spec = what.spec
    return Before(
        spec.policy_ref.name, what.digest, what.against, spec.mode, what.percent, life.phase, life.why, life.since
    )


def lived(what: Declared, *words: Heard, first: int = 0) -> Life:
    """The candidate after it was looked at so many times, a minute apart."""
    life = step(what, None, words[0], now=at(first))
    for minute, word in enumerate(words[1:], start=first + 1):
        life = step(what, before(life, what), word, now=at(minute))
    return life


def test_it_waits_for_routers_then_runs_and_says_how_far_it_is() -> None:
    nobody = heard(running=0)
    assert lived(declared(), nobody, nobody) == Life(Phase.PENDING, Why("NotAcknowledged", "0/2 routers try it"), at(0))
    few = lived(declared(), nobody, heard(), heard(verdict=compared(1.0, 6)), heard(verdict=compared(1.0, 12)))
    assert (few.phase, few.since, few.why.reason) == (Phase.RUNNING, at(1), "NoVerdictYet")
    assert few.why.message == (
        "no verdict yet: 12 of 30 requests in the smaller arm, at this rate in 3 minutes (2/2 routers)"
    )
    enough = lived(declared(), nobody, heard(), heard(verdict=compared(1.0, 40), measured=40))
    assert enough.why == Why("WithinGuardrails", "40 requests, no guardrail is credibly broken (2/2 routers)")


def test_a_verdict_that_will_hardly_come_says_what_to_do() -> None:
    what = declared(guardrails=GuardrailsSpec(min_requests=1_000_000))
    said = heard(verdict=compared(1.0, 2, what.spec.guardrails))
    assert "raise percent or lower guardrails.minRequests" in lived(what, heard(), said, said).why.message


def test_what_no_answer_shows_is_said() -> None:
    current, candidate = arm(1.0, 100), arm(1.0, 50)
    current.tpot = candidate.tpot = type(current.tpot)()
    said = heard(verdict=verdict(current, candidate, LOOSE), measured=50)
    assert "(tpot: fewer than 30 requests showed it)" in lived(declared(), heard(), said, said).why.message


def test_a_breach_rolls_back_and_stays_so_whatever_comes() -> None:
    life = lived(declared(), heard(), heard(verdict=compared(5.0, 60)))
    assert (life.phase, life.why.reason, life.since) == (Phase.ROLLED_BACK, "TtftWorse", at(1))
    assert "2 is allowed, over 60 requests" in life.why.message
    was = before(life, declared())
    for later in (
        declared(),
        declared(percent=50),
        declared(against="sha256:other"),
        declared(mode="Shadow"),
        declared(guardrails=GuardrailsSpec(max_ttft_ratio=100)),
        declared(digest=None, problem=Why("PolicyNotFound", "gone")),
    ):
        assert step(later, was, heard(), now=at(9)) == life


def test_another_candidate_begins_anew() -> None:
    was = before(lived(declared(), heard(), heard(verdict=compared(5.0, 60))), declared())
    assert step(declared(digest="sha256:c"), was, heard(), now=at(9)).phase is Phase.PENDING
    other = declared(policy_ref=NameRef(name="third"), digest="sha256:c")
    assert step(other, was, heard(), now=at(9)).phase is Phase.PENDING


@pytest.mark.parametrize("changes", [{"percent": 50}, {"against": "sha256:x"}, {"mode": "Shadow"}, {"digest": "c"}])
def test_another_trial_begins_anew(changes: dict[str, Any]) -> None:
    was = before(lived(declared(), heard(), heard()), declared())
    life = step(declared(**changes), was, heard(verdict=compared(5.0, 60)), now=at(9))
    assert (life.phase, life.since) == (Phase.PENDING, at(9))


def test_changed_guardrails_are_the_same_trial() -> None:
    was = before(lived(declared(), heard(), heard()), declared())
    strict = declared(guardrails=GuardrailsSpec(max_ttft_ratio=1))
    said = heard(verdict=compared(1.5, 60, strict.spec.guardrails))
    assert step(strict, was, said, now=at(9)).phase is Phase.ROLLED_BACK


def test_a_router_that_stops_it_stops_it_everywhere() -> None:
    life = lived(declared(), heard(), heard(stopped=Why("ErrorsWorse", "a router stopped it")))
    assert (life.phase, life.why.reason) == (Phase.ROLLED_BACK, "ErrorsWorse")


def test_what_rests_or_is_silent_keeps_its_phase() -> None:
    resting = heard(running=0, resting=Why("TooSlow", "it rests"))
    assert lived(declared(), heard(), heard(), resting).phase is Phase.RUNNING
    assert lived(declared(), heard(), heard(), heard(running=0)).phase is Phase.RUNNING
    assert lived(declared(), heard(), resting).phase is Phase.PENDING


def test_a_shadow_is_never_judged() -> None:
    shadow = declared(mode="Shadow")
    life = lived(shadow, heard(), heard(verdict=None), heard(verdict=None))
    assert (life.phase, life.since) == (Phase.SHADOWING, at(1))


def test_what_cannot_be_made_is_refused_until_it_can() -> None:
    broken = declared(digest=None, problem=Why("ModelCorrupt", "no"))
    life = lived(broken, heard(), heard())
    assert life == Life(Phase.REFUSED, Why("ModelCorrupt", "no"), at(0))
    assert step(declared(), before(life, broken), heard(), now=at(5)).phase is Phase.PENDING
    coming = declared(digest=None, problem=Why("Fetching", "it comes"))
    assert lived(coming, heard()).phase is Phase.PENDING


def promoting(**changes: Any) -> Declared:  # noqa: ANN401 - any field
    auto = AutoPromoteSpec(enabled=True, after_seconds=120, min_requests=100)
    return declared(auto_promote=auto, **changes)


def good(count: int = 150, **changes: Any) -> Heard:  # noqa: ANN401 - any field
    return heard(**({"verdict": compared(1.0, count), "measured": count} | changes))


def test_a_candidate_that_held_is_promoted_if_that_was_asked_for() -> None:
    life = lived(promoting(), good(), good(), good(), good())
    assert (life.phase, life.why.reason, life.since) == (Phase.PROMOTED, "HeldItsGuardrails", at(3))
    assert lived(declared(), good(), good(), good(), good()).phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("word", "why"),
    [
        (good(running=1), "is promoted only where all routers try it"),
        (good(resting=Why("TooSlow", "it rests")), "it rests"),
        (good(measured=99), "may be promoted after 100 requests"),
        (good(verdict=compared(1.97, 150)), "not promoted yet: time per"),
    ],
    ids=["one router", "resting", "few requests", "no proof"],
)
def test_a_doubt_keeps_it_from_being_promoted(word: Heard, why: str) -> None:
    life = lived(promoting(), word, word, word, word)
    assert life.phase is Phase.RUNNING
    assert why in life.why.message


def test_it_is_not_promoted_before_its_time() -> None:
    life = lived(promoting(), good(), good(), good())
    assert life.phase is Phase.RUNNING
    assert life.why.message.endswith("may be promoted in 60 s")


def test_a_promotion_holds_while_both_policies_are_what_they_were() -> None:
    what = promoting()
    life = lived(what, good(), good(), good(), good())
    was = before(life, what)
    worse = heard(verdict=compared(5.0, 60))
    for later in (what, replace(what, against=None), promoting(digest=None, problem=Why("PolicyNotFound", "gone"))):
        assert step(later, was, worse, now=at(9)) == life
    assert step(promoting(against="sha256:x"), was, good(), now=at(9)).phase is Phase.PENDING
    assert step(promoting(digest="sha256:x"), was, good(), now=at(9)).phase is Phase.PENDING


def test_times_that_nobody_can_see_do_not_keep_it_from_being_promoted() -> None:
    current, candidate = arm(1.0, 500), arm(1.0, 150)
    current.tpot = candidate.tpot = type(current.tpot)()
    word = heard(verdict=verdict(current, candidate, LOOSE), measured=150)
    assert lived(promoting(), word, word, word, word).phase is Phase.PROMOTED
