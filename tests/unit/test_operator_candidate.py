"""What the operator makes of a candidate: what routers are told, the status, and the Events. Pure, in a loop."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.acknowledgements import said_by
from support.arms import arm
from support.crd_cases import candidate

from llmrouter.acknowledgement import RouterCandidate, RouterShadow
from llmrouter.config import CONFIG_KEY, MAX_CONFIG_BYTES, RouterConfig, parse_router_config
from llmrouter.rollout.wire import wire_of
from llmrouter_operator.builders import Names
from llmrouter_operator.candidate_status import CONDITION
from llmrouter_operator.choice import read_last_good
from llmrouter_operator.decide import decide
from llmrouter_operator.models import CONFIG_MAP, ROUTER_LABEL, Note, Object, ObjectKey, Observed, Ref, RouterDefaults
from llmrouter_operator.news import essence_of
from llmrouter_operator.status import build_status, gather_facts, live_pods, read_acknowledgements, transitions

KEY = ObjectKey("team", "fleet")
CONFIG = Ref(CONFIG_MAP, "fleet-router-config")
ROUTERS = Ref(CONFIG_MAP, "fleet-routers")
START = datetime(2026, 1, 1, tzinfo=UTC)
LOOSE = {"maxTtftRatio": 2, "maxTpotRatio": 2, "maxE2eRatio": 2, "maxErrorFractionIncrease": 0.5, "minRequests": 20}


def policy(name: str, **spec: Any) -> Object:  # noqa: ANN401 - any field
    return {"metadata": {"name": name, "namespace": "team"}, "spec": spec}


class Cluster:
    """An LLMRouter, its policies, one router that obeys, and the operator's pure parts in a loop."""

    def __init__(self, **changes: Any) -> None:  # noqa: ANN401 - any field
        spec = candidate(guardrails=LOOSE, **changes)
        self.router: Object = {
            "metadata": {"name": "fleet", "namespace": "team", "uid": "u", "generation": 1},
            "spec": spec,
        }
        self.policies = {"p": policy("p", type="RoundRobin"), "q": policy("q", type="LeastInFlight")}
        self.owned: dict[Ref, Object | None] = dict.fromkeys(Names(KEY).refs())
        self.seconds = 0
        self.notes: list[Note] = []
        self.writes = 0

    @property
    def spec(self) -> Object:
        spec: Object = self.router["spec"]
        return spec

    @property
    def told(self) -> RouterConfig:
        """What routers are told."""
        config_map = self.owned[CONFIG]
        assert config_map is not None
        return parse_router_config(config_map["data"][CONFIG_KEY].encode())

    @property
    def status(self) -> Object:
        status: Object = self.router.get("status") or {}
        return status

    @property
    def said(self) -> Object:
        """``status.candidate``."""
        said: Object = self.status["candidate"]
        return said

    @property
    def condition(self) -> tuple[str, str]:
        one = next(one for one in self.status["conditions"] if one["type"] == CONDITION)
        return one["status"], one["reason"]

    def reasons(self) -> list[str]:
        """Events since the last call, of candidates."""
        found = [note.reason for note in self.notes if "Candidate" in note.reason or "Promotion" in note.reason]
        self.notes.clear()
        return found

    def look(self, seconds: int = 5) -> None:
        """One reconcile, so many seconds after the last."""
        self.seconds += seconds
        at = (START + timedelta(seconds=self.seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        names = [
            self.spec["policyRef"]["name"],
            (self.spec.get("candidate") or {}).get("policyRef", {}).get("name", ""),
        ]
        observed = Observed(
            router=self.router,
            policy=self.policies.get(names[0]),
            model=None,
            predictor_model=None,
            owned=self.owned,
            pods=({"metadata": {"name": "r1"}, "status": {}},),
            candidate_policy=self.policies.get(names[1]),
            at=at,
        )
        plan = decide(observed, RouterDefaults(image="i"))
        assert plan.problem is None, plan.problem
        last = read_last_good(plan.objects[0])
        self.owned = {**self.owned, CONFIG: copy.deepcopy(plan.objects[0])}
        said = read_acknowledgements(self.owned[ROUTERS], live_pods(observed.pods))
        facts = gather_facts(self.router, plan, None, said)
        old = self.status
        new = build_status(old, facts, in_force=last.config if last else None, now=at)
        self.notes += transitions(old, new)
        self.writes += old != new
        self.router = {**self.router, "status": new}

    def say(self, **changes: Any) -> None:  # noqa: ANN401 - any field
        """The router runs what it is told, and says so; with ``arms`` as they are now."""
        told = self.told
        one = None
        if told.candidate is not None:
            one = RouterCandidate(
                trial=told.trial,
                policy_name=told.candidate.policy.name,
                policy_digest=told.candidate.policy.digest,
                mode=told.candidate.mode,
                ready=True,
                reason="Active",
            ).model_copy(update=changes)
        said = said_by(
            "r1",
            config_digest="d",
            policy_name=told.policy.name,
            policy_type=told.policy.type,
            policy_digest=told.policy.digest,
            instances_ready=1,
            instances_total=1,
            candidate=one,
            at_s=float(self.seconds),
        )
        self.owned[ROUTERS] = {
            "metadata": {"name": ROUTERS.name, "labels": {ROUTER_LABEL: "fleet"}},
            "data": {"r1": said.model_dump_json(by_alias=True, exclude_none=True)},
        }

    def serve(self, times: float, count: int) -> None:
        """So many requests of the candidate, which takes so many times as long, and nine times as many others."""
        self.say(arms={"current": wire_of(arm(1.0, 9 * count)), "candidate": wire_of(arm(times, count))})
        self.look()


def running(**changes: Any) -> Cluster:  # noqa: ANN401 - any field
    cluster = Cluster(**changes)
    cluster.look()
    cluster.serve(1.0, 0)
    assert cluster.said["phase"] in {"Running", "Shadowing"}
    cluster.reasons()
    return cluster


def test_routers_are_told_and_the_status_says_so() -> None:
    cluster = Cluster()
    cluster.look()

    told = cluster.told
    assert (told.policy.name, told.candidate and told.candidate.policy.name) == ("p", "q")
    assert (cluster.said["phase"], cluster.said["percent"], cluster.said["name"]) == ("Pending", 10, "q")
    assert cluster.condition == ("Unknown", "NotAcknowledged")
    assert cluster.reasons() == ["CandidateStarted"]
    cluster.serve(1.0, 5)
    assert (cluster.said["phase"], cluster.condition) == ("Running", ("Unknown", "NoVerdictYet"))
    cluster.serve(1.0, 50)
    assert cluster.condition == ("True", "WithinGuardrails")
    cluster.serve(1.0, 80)
    cluster.look()
    assert cluster.said["arms"][1] == {
        "arm": "candidate",
        "requests": 80,
        "errors": 0,
        "ttftMeanSeconds": 0.12,
        "tpotMeanSeconds": 0.012,
        "e2eMeanSeconds": 1.2,
    }
    assert [one["metric"] for one in cluster.said["comparisons"]] == ["ttft", "tpot", "e2e", "errors"]
    assert cluster.reasons() == []


def test_a_worse_candidate_is_taken_back_and_never_tried_again() -> None:
    cluster = running()
    cluster.serve(5.0, 60)

    assert cluster.told.candidate is None
    assert cluster.told.policy.name == "p"
    assert (cluster.said["phase"], cluster.condition[0]) == ("RolledBack", "False")
    assert cluster.condition[1] in {"TtftWorse", "TpotWorse", "E2eWorse"}
    assert cluster.said["arms"][1]["requests"] == 60
    assert cluster.reasons() == ["CandidateRolledBack"]
    kept = cluster.said
    cluster.say()
    for _ in range(3):
        cluster.look(60)
    assert cluster.said == kept
    assert cluster.told.candidate is None
    assert cluster.reasons() == []


def test_its_policy_gone_and_back_is_no_new_trial_of_what_was_taken_back() -> None:
    cluster = running()
    cluster.serve(5.0, 60)
    gone = cluster.policies.pop("q")
    cluster.look()
    cluster.policies["q"] = gone
    cluster.look()

    assert (cluster.said["phase"], cluster.told.candidate) == ("RolledBack", None)


def test_an_edited_one_and_one_that_is_asked_for_again_are_tried() -> None:
    cluster = running()
    cluster.serve(5.0, 60)
    cluster.reasons()
    cluster.policies["q"] = policy("q", type="PowerOfTwo")
    cluster.look()
    assert (cluster.said["phase"], cluster.reasons()) == ("Pending", ["CandidateStarted"])

    cluster = running()
    cluster.serve(5.0, 60)
    asked = cluster.spec["candidate"]
    cluster.router["spec"] = {name: part for name, part in cluster.spec.items() if name != "candidate"}
    cluster.say()
    cluster.look()
    assert "candidate" not in cluster.status
    cluster.router["spec"] = {**cluster.spec, "candidate": asked}
    cluster.look()
    assert cluster.said["phase"] == "Pending"


def test_one_that_changes_while_it_runs_gives_way_to_the_new_one() -> None:
    cluster = running()
    cluster.policies["q"] = policy("q", type="PowerOfTwo")
    cluster.look()
    assert cluster.reasons() == ["CandidateAbandoned", "CandidateStarted"]
    assert cluster.said["phase"] == "Pending"
    assert "arms" not in cluster.said  # what routers say is still of the other trial


def test_one_that_is_taken_from_the_spec_is_told_of() -> None:
    cluster = running()
    cluster.router["spec"] = {name: part for name, part in cluster.spec.items() if name != "candidate"}
    cluster.look()
    assert (cluster.told.candidate, cluster.reasons()) == (None, ["CandidateAbandoned"])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "PolicyNotFound"),
        (policy("q", type="Psychic"), "PolicyInvalid"),
        (policy("q", type="Onnx", model={"configMap": {"name": "m"}, "sha256": "0" * 64}), "ModelNotFound"),
        (policy("q", type="RoundRobin"), "NothingToCompare"),
        (policy("q", type="LMetric", guard={"forceFallback": True}), "FallbackForced"),
    ],
)
def test_a_bad_one_is_refused_and_the_current_one_untouched(broken: Object | None, reason: str) -> None:
    cluster = Cluster()
    cluster.policies = {"p": cluster.policies["p"], **({"q": broken} if broken else {})}
    cluster.look()

    assert (cluster.told.policy.name, cluster.told.candidate) == ("p", None)
    assert (cluster.said["phase"], cluster.condition) == ("Refused", ("False", reason))
    assert cluster.reasons() == ["CandidateRefused"]
    writes = cluster.writes
    cluster.look()
    assert cluster.writes == writes
    cluster.policies["q"] = policy("q", type="LeastInFlight")
    cluster.look()
    assert cluster.said["phase"] == "Pending"


def test_one_that_a_router_cannot_run_or_stops_is_taken_back() -> None:
    for changes, reason in (
        ({"ready": False, "reason": "ModelCorrupt", "message": "no"}, "ModelCorrupt"),
        ({"paused": True, "paused_reason": "ErrorsWorse", "paused_message": "so many"}, "ErrorsWorse"),
    ):
        cluster = running()
        cluster.say(**changes)
        cluster.look()
        assert (cluster.told.candidate, cluster.condition) == (None, ("False", reason))


def test_one_that_rests_is_doubted_and_not_taken_back() -> None:
    cluster = running()
    cluster.say(ready=False, reason="TooSlow", message="it rests")
    cluster.look()
    assert (cluster.said["phase"], cluster.condition) == ("Running", ("Unknown", "TooSlow"))


def test_a_shadow_is_told_of_and_what_it_would_have_done() -> None:
    cluster = running(mode="Shadow")
    assert cluster.told.candidate is not None
    shadow = RouterShadow(decisions=100, placements=80, agreements=60, compared=20, cost_difference_seconds=-0.25)
    cluster.say(shadow=shadow)
    cluster.look(20)
    assert cluster.said["shadow"] == {"decisions": 100, "agreementFraction": 0.75, "costDifferenceSeconds": -0.25}
    assert (cluster.said["phase"], cluster.condition) == ("Shadowing", ("True", "Shadowing"))
    assert "percent" not in cluster.said


def promoted() -> Cluster:
    cluster = running(autoPromote={"enabled": True, "afterSeconds": 30, "minRequests": 100})
    for count in (60, 120, 180):
        cluster.look(10)
        cluster.serve(1.0, count)
    return cluster


def test_one_that_held_serves_all_and_the_spec_stays_as_it_is() -> None:
    cluster = promoted()
    assert (cluster.told.policy.name, cluster.told.candidate) == ("q", None)
    assert (cluster.said["phase"], cluster.condition) == ("Promoted", ("True", "HeldItsGuardrails"))
    assert cluster.status["activePolicy"]["name"] == "q"
    assert cluster.spec["policyRef"]["name"] == "p"
    note = next(note for note in cluster.notes if note.reason == "CandidatePromoted")
    assert "set spec.policyRef.name to q and remove spec.candidate" in note.message
    cluster.say()
    cluster.look(3600)
    assert (cluster.told.policy.name, cluster.said["phase"]) == ("q", "Promoted")


def test_a_promotion_is_completed_by_the_spec() -> None:
    cluster = promoted()
    cluster.reasons()
    cluster.router["spec"] = {**cluster.spec, "policyRef": {"name": "q"}}
    del cluster.router["spec"]["candidate"]
    before = cluster.told
    cluster.look()
    assert cluster.told == before
    assert cluster.reasons() == ["PromotionCompleted"]


def test_a_promotion_outlives_the_policies_objects_and_ends_with_their_change() -> None:
    cluster = promoted()
    cluster.say()
    for name in ("p", "q"):
        gone = cluster.policies.pop(name)
        cluster.look()
        assert (cluster.told.policy.name, cluster.said["phase"]) == ("q", "Promoted"), name
        cluster.policies[name] = gone
        cluster.look()
    cluster.reasons()
    cluster.policies["p"] = policy("p", type="PowerOfTwo")
    cluster.look()
    assert (cluster.told.policy.name, cluster.said["phase"]) == ("p", "Pending")
    assert cluster.reasons() == ["PromotionEnded", "CandidateStarted"]


def test_numbers_alone_are_written_seldom_and_are_no_news() -> None:
    cluster = running()
    cluster.serve(1.0, 40)
    cluster.look(10)
    writes = cluster.writes
    heard = essence_of(cluster.owned[ROUTERS] or {})
    for count in range(41, 61):
        cluster.say(arms={"current": wire_of(arm(1.0, 400)), "candidate": wire_of(arm(1.0, count))})
        assert essence_of(cluster.owned[ROUTERS] or {}) == heard
        cluster.look(1)
    assert cluster.writes - writes <= 3
    cluster.say(paused=True)
    assert essence_of(cluster.owned[ROUTERS] or {}) != heard


def test_a_status_that_somebody_spoiled_begins_the_trial_anew() -> None:
    cluster = running()
    cluster.router["status"] = {**cluster.status, "candidate": {"phase": "Promoted"}}
    cluster.look()
    assert cluster.said["phase"] == "Pending"


def test_a_model_that_does_not_fit_beside_the_rest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.look()
    size = len((cluster.owned[CONFIG] or {})["data"][CONFIG_KEY])
    assert size < MAX_CONFIG_BYTES
    monkeypatch.setattr("llmrouter_operator.decide.MAX_CONFIG_BYTES", size - 1)
    for _ in range(2):
        cluster.look()
        assert (cluster.told.candidate, cluster.condition) == (None, ("False", "ModelTooLarge"))
    since = cluster.said["since"]
    cluster.look()
    assert cluster.said["since"] == since


def test_what_another_trial_measured_does_not_count() -> None:
    cluster = running()
    cluster.say(trial="another", arms={"current": wire_of(arm(1.0, 500)), "candidate": wire_of(arm(9.0, 100))})
    cluster.look()
    assert cluster.said["phase"] == "Running"
