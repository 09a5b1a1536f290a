"""``llmrouter replay`` and ``explain`` from the command line: figures, warnings and bad input."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.decisions import record, request, view

from llmrouter.cli import main
from llmrouter.config import compile_policy
from llmrouter.decisions.making import Decided, record_of
from llmrouter.decisions.record import DecisionRecord, Outcome, PolicyInForce, to_line
from llmrouter.domain import Placement, PoolSnapshot
from llmrouter.errors import InvalidConfigError
from llmrouter.replay.choosing import Chooser, state_of
from llmrouter.resources import RoutingPolicySpec
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.exploring import Exploring, propensities, roomy_of
from llmrouter.routing.rooms import request_bound

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a", "b", "c")


def log_of(count: int, fraction: float, *, kind: str = "LeastInFlight", seed: int = 1) -> list[DecisionRecord]:
    """A router's log on loads drawn at random, where a choice costs what its context and its prompts in wait say."""
    rng, draws = np.random.default_rng(seed), random.Random(seed)
    policy = Exploring(make_policy(kind, request_bound(512)), fraction)
    section = PolicyInForce(name="p", type=kind, digest="d", exploration_fraction=fraction, decided_by=kind)
    found = []
    for number in range(count):
        views = [
            view(
                name, int(rng.integers(0, 9)), context_tokens=int(rng.integers(0, 50_000)), queued_prefill_tokens=int(q)
            )
            for name, q in zip(NAMES, rng.exponential(3000.0, 3), strict=True)
        ]
        asked = request(f"r{number}", arrived_at_s=float(number))
        decision = policy.decide(asked, PoolSnapshot(tuple(views), float(number)), draws)
        assert isinstance(decision, Placement)
        chosen = next(one for one in views if one.instance.instance_id == decision.candidates[0].instance_id)
        ttft_s = (0.01 + 4e-5 * chosen.load.queued_prefill_tokens) * float(rng.gamma(20.0, 0.05))
        _, roomy = roomy_of(policy.room_of, asked, views)
        decided = Decided(
            request=asked,
            router_id="r",
            arrived_at_s=float(number),
            decided_at_s=float(number),
            arm="current",
            policy=section,
            reason=decision.reason,
            explored=decision.explored,
            degraded=False,
            load_age_s=0.0,
            eligible=3,
            roomy_ids=frozenset(NAMES),
            views=views,
            candidates=decision.candidates,
            propensities=propensities(kind, decision, roomy, fraction),
            chosen=chosen.instance.instance_id,
        )
        outcome = Outcome(kind="Finished", ttft_s=ttft_s, tpot_s=0.01, e2e_s=ttft_s + 0.5, output_tokens=50)
        found.append(record_of(decided, outcome))
    return found


def written(path: Path, records: list[DecisionRecord]) -> Path:
    path.write_bytes(b"".join(map(to_line, records)))
    return path


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["replay", "--json", *words]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_another_policy_is_estimated_in_the_states_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(tmp_path / "log", log_of(1500, 0.2))
    said = replayed(capsys, "--log", str(log), "--policy", "PrefillLoad", "--no-simulation")
    least = [min(one.queued_prefill_tokens for one in each.candidates) for each in log_of(1500, 0.2)]
    truth_s = 0.01 + 4e-5 * np.mean(least)
    found = said["estimates"]["ttft_s"]
    assert found["logged"]["value"] > 1.5 * truth_s
    for name in ("snips", "doubly_robust"):
        assert found[name]["low"] <= truth_s <= found[name]["high"]
        assert found[f"{name}_change"]["high"] < 0.0
    assert found["unsupported_fraction"] == 0.0
    assert said["decisions"] == said["records"] == 1500
    assert said["simulation"] is None
    assert said["warnings"] == []


def test_a_log_that_never_varied_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path / "log", log_of(300, 0.0))
    said = replayed(capsys, "--log", str(log), "--policy", "PrefillLoad", "--no-simulation")
    assert "could never have made" in said["warnings"][0]
    assert "spec.exploration.fraction" in said["warnings"][0]
    assert said["estimates"]["ttft_s"]["unsupported_fraction"] > 0.5


def test_records_that_cannot_be_asked_again_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = log_of(120, 0.2)
    unknown = tuple(one.model_copy(update={"propensity": None}) for one in records[2].candidates)
    spoilt: list[dict[str, Any]] = [{"outcome": Outcome(kind="Failed")}, {"chosen": "z"}, {"candidates": unknown}]
    for place, changes in enumerate([*spoilt, {"roomy": 4}]):
        records[place] = records[place].model_copy(update=changes)
    log = written(tmp_path / "log", records)
    said = replayed(capsys, "--log", str(log), "--policy", "Random", "--no-simulation")
    assert said["decisions"] == 116
    assert sorted(said["left_out"].values()) == [1, 1, 1, 1]
    assert any("are left out" in one for one in said["warnings"])


def test_too_few_decisions_are_no_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path / "log", log_of(20, 0.2))
    said = replayed(capsys, "--log", str(log), "--policy", "Random", "--no-simulation")
    assert set(said["estimates"].values()) == {None}
    assert said["warnings"] == ["Fewer than 50 decisions can be asked again: nothing is estimated from the log."]
    assert main(["replay", "--log", str(log), "--policy", "Random", "--no-simulation"]) == 0
    assert "nothing is estimated" in capsys.readouterr().out.replace("\n", " ")


def test_a_sample_is_not_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [one.model_copy(update={"sample_fraction": 0.1}) for one in log_of(60, 0.2)]
    log = written(tmp_path / "log", records)
    said = replayed(capsys, "--log", str(log), "--policy", "Random")
    assert "needs all of them" in said["simulation"]["why_not"]


@pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
def test_the_logs_requests_are_simulated_under_both_policies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = written(tmp_path / "log", log_of(200, 0.2))
    policy = tmp_path / "policy.yaml"
    document = {"apiVersion": "llmrouter.dev/v1alpha1", "kind": "RoutingPolicy", "metadata": {"name": "mine"}}
    policy.write_text(json.dumps({**document, "spec": {"type": "WorkloadImpact"}}))
    said = replayed(capsys, "--log", str(log), "--policy", str(policy), "--logged", "LeastInFlight")
    assert said["policy"]["name"] == "mine"
    for side in ("logged", "policy"):
        assert said["simulation"][side]["finished_fraction"] == 1.0
        assert 0.0 < said["simulation"][side]["ttft_s"] < said["simulation"][side]["e2e_s"]
    assert main(["replay", "--log", str(log), "--policy", str(policy)]) == 0
    assert "other, simulated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policy", "Psychic"], "--policy Psychic: neither a file nor one of RoundRobin"),
        (["--policy", "Random", "--seed", "-1"], "--seed: must be at least 0"),
        (["--policy", "Random", "--max-requests", "0"], "--max-requests: must be 1 to 65536"),
        (["--policy", "{log}"], "--policy"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    log = written(tmp_path / "log", log_of(3, 0.2))
    assert main(["replay", "--log", str(log), *(one.format(log=log) for one in words)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_empty_and_a_missing_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = written(tmp_path / "log", [])
    assert main(["replay", "--log", str(empty), "--policy", "Random"]) == 2
    assert "no decision in it" in capsys.readouterr().err
    assert main(["explain", "r", "--log", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_models_of_ones_own_cannot_be_asked_again() -> None:
    spec = RoutingPolicySpec.model_validate({"type": "Learned", "model": {"builtin": "learned"}})
    with pytest.raises(InvalidConfigError, match="policy p: type Learned cannot be asked again"):
        Chooser(compile_policy("p", spec, model_sha256=None))


def chooser(kind: str, **spec: Any) -> Chooser:  # noqa: ANN401 - fields of a RoutingPolicy
    return Chooser(compile_policy(kind, RoutingPolicySpec.model_validate({"type": kind, **spec}), model_sha256=None))


def test_a_record_is_asked_as_its_router_was() -> None:
    views = (view("a", 2), view("b", 1, queued_prefill_tokens=900), view("c", 1))
    state = state_of(record(*views))
    assert [one.total for one in state.snapshot.views] == [one.total for one in views]
    assert chooser("LeastInFlight").probabilities(state) == {"a": 0.0, "b": 0.5, "c": 0.5}
    assert chooser("RoundRobin").probabilities(state) == pytest.approx(dict.fromkeys("abc", 1 / 3))
    explores = chooser("PrefillLoad", exploration={"fraction": 0.1}).probabilities(state)
    assert explores is not None
    assert explores["b"] == pytest.approx(0.1 / 3)


def test_explain_says_a_record_of_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = written(tmp_path / "log", log_of(5, 0.2))
    assert main(["explain", "r3", "--log", str(log)]) == 0
    assert "3 of 3 instances that served the model had room." in capsys.readouterr().out
    assert main(["explain", "r3", "--log", str(log), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["record"]["request_id"] == "r3"
    assert len(said["words"]) >= 4
    assert main(["explain", "nobody", "--log", str(log)]) == 2
    assert "no decision on request 'nobody'; was it sampled?" in capsys.readouterr().err
    assert main(["explain", "r", "--router", "ftp://x"]) == 2
    assert "--router ftp://x: must begin with http:// or https://" in capsys.readouterr().err
    assert main(["explain", "r", "--router", "http://127.0.0.1:9"]) == 2
    assert "--router http://127.0.0.1:9: " in capsys.readouterr().err
