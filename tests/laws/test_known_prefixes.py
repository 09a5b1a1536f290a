"""The routers' prefix index in the simulator is the one that serves: both are driven with the same random stream."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sim_worlds import SMALL, Interpreted, same

from llmrouter.arrivals.multi_turn import SessionLaw, sessions
from llmrouter.profiles import H100_MIX
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.policies import request_bound
from llmrouter.routing.prefixes import PrefixIndex, Use
from llmrouter.routing.rules import Rule
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.kernel.known_prefixes import cached_tokens, report_prefix, use_prefix
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, PrefixView, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from llmrouter.sim.kernel.records import World

ENGINES, ROUTERS = 3, 2

prompts = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(0, 12), st.integers(0, 15)), min_size=1, max_size=40
)
"""Family of the prompt, blocks, the block where it leaves its family, tokens beyond."""


def workload_of(drawn: list[tuple[int, int, int, int]]) -> Workload:
    blocks: list[int] = []
    start = [0]
    lengths = []
    for number, (family, count, fork, beyond) in enumerate(drawn):
        blocks += [family * 20 + place if place < fork else 1_000 + number * 20 + place for place in range(count)]
        start.append(len(blocks))
        lengths.append(max(1, 16 * count + beyond))
    return Workload.of(
        np.zeros(len(drawn)),
        lengths,
        [1] * len(drawn),
        prefix_start=start,
        prefix_blocks=blocks,
        prefix_block_tokens=16,
    )


def world_of(workload: Workload, view: PrefixView) -> World:
    profile = replace(SMALL, kv_tokens=17 * 16)
    engines = tuple(EngineModel(profile, prefix_caching=place != 1) for place in range(ENGINES))
    setup = Setup(engines=engines, routers=RouterSide(routers=ROUTERS, prefixes=view))
    interpreter = Interpreted()
    return interpreter._copy_of(lay_out(setup, workload, seed=0))


@given(
    drawn=prompts, rng=st.randoms(use_true_random=False), view=st.sampled_from([PrefixView.INDEX, PrefixView.SHARED])
)
@settings(max_examples=150, deadline=None)
def test_what_the_simulator_expects_is_what_the_index_expects(
    drawn: list[tuple[int, int, int, int]], rng: object, view: PrefixView
) -> None:
    """Uses, reports (of whatever), clearing and eviction leave both with the same hits for every engine and router."""
    workload = workload_of(drawn)
    world = world_of(workload, view)
    indexes = [PrefixIndex(max_entries=10**6) for _ in range(ROUTERS)]
    if view is PrefixView.SHARED:
        indexes = indexes[:1] * ROUTERS
    sent: list[tuple[int, int, Use]] = []
    for s in range(len(workload)):
        router, e = rng.randrange(ROUTERS), rng.randrange(ENGINES)  # type: ignore[attr-defined]
        world.pool.sequences[s].router, world.pool.sequences[s].instance = router, e
        hashes = tuple(workload.prefix_blocks[workload.prefix_start[s] : workload.prefix_start[s + 1]].tolist())
        prompt = int(workload.prompt_tokens[s])
        for r, index in enumerate(indexes):
            expected = index.hits(hashes, 16, prompt)
            found = [cached_tokens(world, r, place, s) for place in range(ENGINES)]
            assert found == [expected.get(str(place), 0) for place in range(ENGINES)]
        use_prefix(world, s, e)
        if world.pool.engines[e].prefix_caching:
            use = indexes[router].use(str(e), hashes, block_tokens=16, prompt_tokens=prompt, kv_tokens=17 * 16)
            assert world.pool.sequences[s].cached_expected == use.expected_tokens
            sent.append((s, router, use))
        if sent and rng.random() < 0.6:  # type: ignore[attr-defined]
            reported, router, use = sent.pop(rng.randrange(len(sent)))  # type: ignore[attr-defined]
            usage = rng.choice([0, use.expected_tokens // 3, use.expected_tokens, 10**6])  # type: ignore[attr-defined]
            world.pool.sequences[reported].cached = usage
            report_prefix(world, reported)
            indexes[router].reported(use, usage)


def test_who_knows_nothing_and_who_knows_all_keep_no_index() -> None:
    """Under these views nothing is filed, and nothing is expected of an empty cache."""
    workload = workload_of([(0, 4, 4, 1), (0, 4, 4, 1)])
    for view in (PrefixView.UNKNOWN, PrefixView.EXACT):
        world = world_of(workload, view)
        use_prefix(world, 0, 0)
        assert cached_tokens(world, 0, 0, 1) == 0
        assert len(world.known_uses) == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("view", list(PrefixView))
def test_a_rule_and_its_policy_see_the_same_hits(view: PrefixView) -> None:
    """Where engines are so unequal that nothing ties, a compiled rule and its policy come to equal bytes."""
    law = SessionLaw(tenants=3, system_prompt_tokens=256, mean_turns=4, think_median_s=1.0, question_median_tokens=80)
    workload = sessions(law, 4.0, 60, np.random.default_rng(3))
    workload = workload.with_predictions(workload.output_tokens.astype(np.float64))
    engines = tuple(
        EngineModel(
            replace(
                H100_MIX, base_decode_s=0.01 + place / 997, prefill_s_per_token=1e-4 + place / 9e5, kv_tokens=24_000
            ),
            prefix_caching=place != 2,
        )
        for place in range(3)
    )
    setup = Setup(engines=engines, routers=RouterSide(routers=2, refresh_s=0.05, prefixes=view))
    fast = simulate(setup, workload, CompiledPolicy(rule=Rule.OWN_LATENCY, max_requests=64))
    assert same(fast, simulate(setup, workload, make_policy("OwnLatency", request_bound(64))))
    assert fast.cached_tokens.sum() > 0
