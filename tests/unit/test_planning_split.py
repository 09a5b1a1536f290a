"""Which split is proposed, when what there is stays, and what the words say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plan_cases import A100, H100, SLO, demand, inputs, staged

from llmrouter.domain import Role
from llmrouter.errors import InvalidInputError
from llmrouter.planning import split as split_module
from llmrouter.planning.inputs import PlanInputs, PoolOption, Slo
from llmrouter.planning.outlook import outlook, paths_of
from llmrouter.planning.split import propose

MIXED = PoolOption(name="x", profile=H100, min_replicas=1, max_replicas=8, current=2)


def test_long_prompts_get_prefill_instances_and_long_answers_decode_instances() -> None:
    summaries = propose(inputs(demand(60.0, 4_000.0, 60.0), pools=staged(4, 4)))
    stories = propose(inputs(demand(60.0, 200.0, 1_200.0), pools=staged(4, 4)))
    assert summaries.replicas["p"] > summaries.replicas["d"]
    assert stories.replicas["p"] < stories.replicas["d"]


def test_the_reason_names_the_bottleneck_the_change_and_what_is_expected() -> None:
    found = propose(inputs(demand(100.0, 2_500.0, 100.0), pools=staged(3, 5)))
    assert found.bottleneck == "prefill"
    assert found.reason.startswith(f"prefill is the bottleneck: p 3 → {found.replicas['p']}")
    assert "TTFT p90" in found.reason
    assert found.goodput_rps > found.current_goodput_rps
    assert 0.0 < found.attainment <= 1.0


def test_fewer_gpus_are_proposed_where_they_do() -> None:
    found = propose(inputs(demand(5.0), pools=(replace(MIXED, current=6),)))
    assert found.replicas == {"x": 1}
    assert found.reason.startswith("fewer GPUs do: x 6 → 1")


def test_nothing_arrives_needs_the_least() -> None:
    assert propose(inputs(demand(0.0), pools=staged(3, 3))).replicas == {"p": 1, "d": 1}
    assert propose(inputs(pools=staged(3, 3))).replicas == {"p": 1, "d": 1}


@given(
    st.tuples(st.floats(1.0, 200.0), st.floats(100.0, 5_000.0), st.floats(10.0, 1_000.0)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(2, 12),
)
@settings(max_examples=25, deadline=None)
def test_a_proposal_is_within_all_bounds_and_never_worse(
    asked: tuple[float, float, float], has: tuple[int, int], gpus: int
) -> None:
    whole = inputs(demand(*asked), pools=staged(*has, most=6), gpus=gpus)
    found = propose(whole)
    assert sum(found.replicas.values()) == found.gpus <= gpus
    assert all(pool.min_replicas <= found.replicas[pool.name] <= pool.max_replicas for pool in whole.pools)
    worst_allowed = min(found.current_goodput_rps, SLO.attainment * asked[0])
    assert found.goodput_rps >= worst_allowed - 1e-9


@given(st.floats(5.0, 150.0), st.floats(300.0, 4_000.0), st.floats(20.0, 600.0))
@settings(max_examples=10, deadline=None)
def test_what_was_proposed_is_kept(rate: float, prompt: float, output: float) -> None:
    """The plan of a plan is itself: nothing flips."""
    asked = demand(rate, prompt, output)
    first = propose(inputs(asked, pools=staged(3, 3)))
    again = propose(inputs(asked, pools=staged(first.replicas["p"], first.replicas["d"])))
    assert again.replicas == first.replicas
    assert again.reason.startswith("what there is is kept")


@pytest.mark.parametrize("rate", [40.0, 80.0, 110.0])
def test_noise_moves_nothing(rate: float) -> None:
    settled = propose(inputs(demand(rate, 1_500.0, 150.0), pools=staged(4, 4))).replicas
    for factor in (0.98, 1.02, 0.99, 1.01):
        again = propose(inputs(demand(rate * factor, 1_500.0, 150.0), pools=staged(settled["p"], settled["d"])))
        assert again.replicas == settled, again.reason


def test_many_splits_are_climbed_to_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [inputs(demand(rate, 2_000.0, 150.0), pools=staged(1, 1, most=12), gpus=16) for rate in (20.0, 90.0, 200.0)]
    tried = [propose(one).replicas for one in asked]
    monkeypatch.setattr(split_module, "MANY_SPLITS", 1)
    assert [propose(one).replicas for one in asked] == tried


def test_a_larger_gpu_is_worth_its_place() -> None:
    """Of two pools with different profiles the plan knows what each can do: fewer of the faster ones meet the SLO."""
    fast = PoolOption(name="h100", profile=H100, max_replicas=8)
    slow = PoolOption(name="a100", profile=A100, max_replicas=8)
    found = propose(inputs(demand(60.0), pools=(fast, slow), gpus=None))
    assert found.replicas["a100"] == 0
    scarce = propose(inputs(demand(60.0), pools=(replace(fast, max_replicas=2), slow), gpus=None))
    assert scarce.replicas["h100"] == 2
    assert scarce.replicas["a100"] > 0
    double = propose(inputs(demand(60.0), pools=(replace(fast, gpus_per_replica=8), slow), gpus=8))
    assert double.replicas["a100"] > 0


def test_unequal_pools_share_a_model_by_what_they_can_do() -> None:
    pools = (PoolOption(name="h100", profile=H100), PoolOption(name="a100", profile=A100))
    loads = outlook((demand(40.0),), pools, {"h100": 2, "a100": 2}, SLO).loads
    assert loads["h100"] == pytest.approx(loads["a100"], rel=0.1)


def test_models_share_a_budget() -> None:
    """GPUs go to the model that is asked for more."""
    pools = tuple(
        PoolOption(name=name, profile=H100, models=frozenset({name}), min_replicas=1, max_replicas=8, current=3)
        for name in ("a", "b")
    )
    found = propose(inputs(demand(90.0, model="a"), demand(15.0, model="b"), pools=pools, gpus=6))
    assert found.replicas["a"] > found.replicas["b"]
    assert found.gpus <= 6
    swapped = propose(inputs(demand(15.0, model="a"), demand(90.0, model="b"), pools=pools, gpus=6))
    assert swapped.replicas == {"a": found.replicas["b"], "b": found.replicas["a"]}


def test_models_that_share_a_pool_load_it_together() -> None:
    shared = PoolOption(name="both", profile=H100)
    own = PoolOption(name="own", profile=H100, models=frozenset({"a"}))
    seen = outlook((demand(30.0, model="a"), demand(15.0, model="b")), (shared, own), {"both": 2, "own": 1}, SLO)
    assert seen.loads["both"] == pytest.approx(seen.loads["own"], rel=0.15)
    alone = outlook((demand(15.0, model="b"),), (shared, own), {"both": 2, "own": 1}, SLO)
    assert alone.loads["both"] < seen.loads["both"]
    assert alone.loads["own"] == 0.0


def test_mixed_pools_serve_beside_stages() -> None:
    pools = (*staged(2, 1), replace(MIXED, current=1))
    assert len(paths_of("m", pools)) == 2
    seen = outlook((demand(30.0),), pools, {"p": 2, "d": 1, "x": 1}, SLO)
    assert all(load > 0.0 for load in seen.loads.values())


def test_overload_is_told_as_what_can_be_served() -> None:
    seen = outlook((demand(500.0),), (MIXED,), {"x": 1}, SLO)
    [one] = seen.models
    assert 0.0 < one.goodput_rps < one.served_rps < one.offered_rps
    assert one.ttft_s(0.9) is not None
    none = outlook((demand(5.0),), (MIXED,), {"x": 0}, SLO).models[0]
    assert (none.goodput_rps, none.bottleneck, none.ttft_s(0.9), none.tpot_s) == (0.0, "instances", None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu_budget": 1}, "gpuBudget 1 is below what minReplicas need, 2"),
        ({"pools": ()}, "at least one is needed"),
        (
            {"demands": (demand(1.0, model="z"),), "pools": (replace(MIXED, models=frozenset({"a"})),)},
            "none serves model z",
        ),
    ],
)
def test_an_impossible_plan_says_why(change: dict[str, object], message: str) -> None:
    good = inputs(demand(1.0), pools=staged(1, 1))
    with pytest.raises(InvalidInputError, match=message):
        propose(
            PlanInputs(**({name: getattr(good, name) for name in ("demands", "pools", "slo", "gpu_budget")} | change))
        )


def test_numbers_out_of_bounds_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="ttft_s"):
        Slo(ttft_s=0.0, tpot_s=1.0)
    with pytest.raises(InvalidInputError, match="minReplicas"):
        PoolOption(name="x", profile=H100, min_replicas=3, max_replicas=2)
    with pytest.raises(InvalidInputError, match="replicas"):
        PoolOption(name="x", profile=H100, role=Role.MIXED, current=-1)
    with pytest.raises(InvalidInputError, match="requests_per_s"):
        demand(-1.0)
