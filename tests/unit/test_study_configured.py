"""A router's own file, simulated: engines, policy and router side as the router itself reads them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, get_args

import pytest
from support.pools import view

from llmrouter.config import canonical_json
from llmrouter.domain import ObjectiveWeights
from llmrouter.errors import InvalidInputError
from llmrouter.resources import PolicyType
from llmrouter.routing.rules import Rule
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study import simulate_options
from llmrouter.study.configured import RULES, SHED_AT_ONCE_S, policy_of, read_configured
from llmrouter.study.predictors import Predictor
from router_grpc.adapters.file_source import compile_file
from router_grpc.runtime import ConfigBundle, RuntimeBuilder

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: mine}}
spec: {{type: {type}, {policy}}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: r}}
spec:
  models: [{{name: a}}, {{name: b}}]
  pools:
    - {{name: fast, endpoints: ["x:1", "y:1"], profile: {{name: h100-mix}}}}
    - {{name: slow, models: [{slow}], {slow_source}, profile: {{name: paper-v100}}}}
  policyRef: {{name: mine}}
  router: {{replicas: {replicas}}}
  state: {state}
"""


def write(path: Path, **parts: str) -> Path:
    given = {
        "type": "LMetric",
        "policy": "hold: {enabled: true}",
        "slow": "a, b",
        "slow_source": 'endpoints: ["z:1"]',
        "replicas": "1",
        "state": "{}",
    }
    file = path / "router.yaml"
    file.write_text(FILE.format(**{**given, **parts}))
    return file


def test_pools_become_engines_and_the_policy_a_contender(tmp_path: Path) -> None:
    path = write(tmp_path, policy="hold: {maxWaitSeconds: 3}, queue: {maxDepth: 7}")
    found = read_configured(path, {"slow": 3})
    assert [engine.profile.name for engine in found.engines] == ["h100-mix"] * 2 + ["paper-v100"] * 3
    assert found.contender.name == "mine"
    assert (found.routers.routers, found.routers.max_wait_s, found.routers.max_held) == (1, 3.0, 7)


def test_a_pool_found_by_labels_needs_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, slow_source="selector: {matchLabels: {app: engine}}")
    with pytest.raises(InvalidInputError, match="slow=N"):
        read_configured(path, {})
    assert len(read_configured(path, {"slow": 2}).engines) == 4


def test_without_holding_a_request_is_shed_at_once(tmp_path: Path) -> None:
    found = read_configured(write(tmp_path, policy="hold: {enabled: false}"), {})
    assert found.routers.max_wait_s == SHED_AT_ONCE_S


def test_replicas_count_as_one_through_redis(tmp_path: Path) -> None:
    path = write(tmp_path, replicas="3", state='{redis: {address: "r:6379"}}')
    routers = read_configured(path, {}).routers
    assert (routers.routers, routers.shared) == (3, True)


def test_the_file_is_the_scenario_unless_the_command_line_says_more(tmp_path: Path) -> None:
    path = write(tmp_path)
    scenario = simulate_options.parse(["--poisson", "1", "--config", str(path), "--policy", "RoundRobin"])
    assert [one.name for one in scenario.contenders] == ["mine", "RoundRobin"]
    assert scenario.predictor is Predictor.FOREST
    assert scenario.setup.serves == ()
    for words in (["--profile", "h100-mix"], ["--instances", "3"]):
        with pytest.raises(InvalidInputError, match="--config"):
            simulate_options.parse(["--poisson", "1", "--config", str(path), *words])


def test_pools_that_serve_different_models_need_one(tmp_path: Path) -> None:
    path = write(tmp_path, slow="b")
    words = ["--poisson", "1", "--config", str(path)]
    with pytest.raises(InvalidInputError, match="--model, one of a, b"):
        simulate_options.parse(words)
    with pytest.raises(InvalidInputError, match="none of a, b"):
        simulate_options.parse([*words, "--model", "c"])
    scenario = simulate_options.parse([*words, "--model", "a"])
    assert scenario.model == "a"
    assert scenario.setup.serves == (frozenset("ab"), frozenset("ab"), frozenset("b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not YAML"),
        ("{apiVersion: v1, kind: Pod}", "document 1"),
        ("{apiVersion: llmrouter.dev/v1alpha1, kind: RoutingPolicy, metadata: {name: p}}", "exactly one LLMRouter"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=rf"wrong\.yaml: .*{said}"):
        read_configured(path, {})


def test_every_type_of_policy_has_a_rule() -> None:
    every = {name for part in get_args(PolicyType) for name in (get_args(part) or (part,))}
    assert set(RULES) == every - {"Learned"}


def test_a_learned_policy_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, type="Learned", policy="model: {builtin: learned}")
    with pytest.raises(InvalidInputError, match="type Learned is simulated by"):
        read_configured(path, {})


@pytest.mark.parametrize(
    ("policy_type", "hold"),
    list(
        itertools.product(
            ["RoundRobin", "LMetric", "WorkloadImpact", "Onnx"],
            ["{}", "{enabled: false}", "{room: Kv, kvFraction: 0.8, decodeReserveFraction: 0.3}", "{room: Requests}"],
        )
    ),
)
def test_the_room_is_that_of_the_router(tmp_path: Path, policy_type: str, hold: str) -> None:
    """What the router's own builder makes of the same file bounds an instance in the same way."""
    model = "model: {builtin: marginal-cost}, " if policy_type == "Onnx" else ""
    path = write(tmp_path, type=policy_type, policy=f"{model}hold: {hold}")
    config = compile_file(path.read_text())
    served = RuntimeBuilder(lambda: 0.0).build(ConfigBundle(canonical_json(config))).guard.primary
    rule = policy_of(config)
    assert isinstance(rule, CompiledPolicy)
    one = view("i")
    room, profile = served.room_of(one), one.instance.profile
    assert room.max_requests == (profile.max_sequences if rule.max_requests is None else rule.max_requests)
    if rule.kv_fraction is None:
        assert room.kv_limit_tokens is None
    else:
        assert room.decode_reserve_fraction == rule.decode_reserve_fraction
        assert room.kv_limit_tokens == int(rule.kv_fraction * profile.kv_tokens) - profile.block_tokens
        assert room.decode_reserve_fraction == rule.decode_reserve_fraction


def test_the_objective_of_the_file_weighs_the_cost(tmp_path: Path) -> None:
    path = write(tmp_path, type="WorkloadImpact", policy="objective: {stallWeight: 0.7, coalesceWeight: 0}")
    rule = read_configured(path, {}).contender.make()
    assert isinstance(rule, CompiledPolicy)
    assert rule.rule is Rule.MARGINAL_COST
    assert rule.weights == ObjectiveWeights(stall=0.7, coalesce=0.0).in_order
