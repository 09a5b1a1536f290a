"""The paper's cells as they are built, and a small run of each table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from bench.paper import assumptions, cells, claims, mixing, play, printed, tables, two_instances, variations, verdicts
from bench.paper.__main__ import arguments
from bench.paper.routes import PROBES, ROUTES, Lengths
from llmrouter.domain import EngineMode
from llmrouter.sim.model import QueueOrder
from llmrouter.study.statistics import Change

if TYPE_CHECKING:
    from rich.table import Table

CELLS = {cell.name: cell for cell in cells.all_cells()}


def test_cells_have_the_printed_counts_and_rates() -> None:
    found = {name: (cell.instances, cell.requests, cell.rate_rps) for name, cell in CELLS.items()}
    assert found == {
        "v100-4": (4, 2_000, 20.0),
        "v100-8": (8, 4_000, 40.0),
        "a100-4": (4, assumptions.A100_REQUESTS, 80.0),
        "a100-4-chunked": (4, assumptions.A100_REQUESTS, 80.0),
        "production": (4, 4_000, 80.0),
    }


@pytest.mark.parametrize("name", list(CELLS))
def test_a_cell_draws_its_requests(name: str) -> None:
    cell = CELLS[name]
    made = cell.workload(3, Lengths.BUCKETS)
    assert len(made) == cell.requests
    assert made.rate_rps == pytest.approx(cell.rate_rps, rel=0.1)
    assert set(np.unique(made.predicted_output_tokens)) <= set(cells.bucket_classifier(cell.source).values)


def test_routes_meet_the_same_requests_and_differ_in_what_they_are_told() -> None:
    cell = CELLS["v100-4"]
    told, true = cell.workload(1, Lengths.BUCKETS), cell.workload(1, Lengths.TRUE)
    assert (told.output_tokens == true.output_tokens).all()
    assert (true.predicted_output_tokens == true.output_tokens).all()
    assert not (told.predicted_output_tokens == told.output_tokens).all()


def test_engines_are_what_the_paper_says_of_them() -> None:
    assert CELLS["v100-4"].engine.profile.max_sequences == CELLS["a100-4"].engine.profile.max_sequences == 128
    assert CELLS["a100-4"].engine.profile.mode is EngineMode.PREFILL_FIRST
    assert CELLS["a100-4-chunked"].engine.profile.mode is EngineMode.CHUNKED
    assert CELLS["production"].engine.profile.token_budget == 1_024
    assert set(cells.ordered_cells()) == set(QueueOrder)


def test_the_router_of_every_cell_can_keep_up() -> None:
    for cell in CELLS.values():
        assert cell.rate_rps * cell.tick_s < 1.0


def test_mean_lengths_are_those_of_the_papers_table() -> None:
    made = CELLS["v100-4"].source.workload(20.0, 50_000, 5)
    assert made.prompt_tokens.mean() == pytest.approx(89.03, rel=0.03)
    assert made.output_tokens.mean() == pytest.approx(175.71, rel=0.03)


def test_a_scaled_profile_takes_as_many_times_as_long() -> None:
    profile = CELLS["v100-4"].engine.profile
    assert mixing.step_s(profile.slower(2.0), 7, 900) == pytest.approx(2.0 * mixing.step_s(profile, 7, 900))


@pytest.mark.parametrize("scenario", range(4))
def test_scenarios_have_their_share_of_each_kind_in_their_order(scenario: int) -> None:
    prompt, decode = two_instances.heavy(scenario, 3_000, 4)
    if scenario == 1:
        assert [(prompt & decode).mean(), (prompt & ~decode).mean()] == pytest.approx([0.25, 0.25], abs=0.03)
        return
    assert (prompt == ~decode).all()
    assert decode.mean() == pytest.approx(assumptions.HEAVY_DECODE_SHARE, abs=0.03)
    changes = int((np.diff(decode.astype(int)) != 0).sum())
    assert changes == 1 if scenario > 1 else changes > 1_000
    assert scenario == 0 or decode[0] == (scenario == 2)


def test_a_scenarios_lengths_are_the_assumed_ones() -> None:
    made = two_instances.workload(1, 2)
    assert len(made) == 3_000
    assert set(made.prompt_tokens) == {assumptions.LIGHT_PROMPT_TOKENS, assumptions.HEAVY_PROMPT_TOKENS}
    assert set(made.output_tokens) == {assumptions.LIGHT_OUTPUT_TOKENS, assumptions.HEAVY_OUTPUT_TOKENS}
    assert (made.predicted_output_tokens == made.output_tokens).all()


def test_a_request_that_others_join_takes_longer() -> None:
    measured = mixing.measure()
    assert measured.alone_s == pytest.approx(printed.MIXING_ALONE_S, rel=0.05)
    assert measured.joined_s == pytest.approx(printed.MIXING_JOINED_S, rel=0.05)
    assert measured.joins == 19  # one every 50 of the 999 steps after the prefill


def test_percents_of_printed_seconds_are_the_papers() -> None:
    found = printed.percent_of(printed.A100_MAKESPAN_S)
    assert found["Baseline RL"] == pytest.approx(-3.15, abs=0.01)
    assert found["Workload-guided RL"] == pytest.approx(-10.71, abs=0.01)


def test_verdicts() -> None:
    assert verdicts.of_seconds(164.0, (168.0, 173.0)) == verdicts.AGREES
    assert verdicts.of_seconds(158.0, (168.0, 173.0)) == verdicts.DIFFERS
    assert verdicts.of_change(Change(-3.0, 1.0), -1.7) == verdicts.AGREES
    assert verdicts.of_change(Change(-3.0, 1.0), -1.5) == verdicts.DIFFERS
    assert verdicts.of_change(Change(-3.0, None), -3.0) == verdicts.UNKNOWN


@pytest.mark.parametrize("name", list(CELLS))
def test_a_small_run_of_a_cell_finishes_every_request(name: str) -> None:
    cell = replace(CELLS[name], requests=60)
    found = play.rows(cell, cell.routes, [1, 2])
    assert [row.route for row in found] == list(cell.routes)
    assert all(row.mean("makespan_s") > 0 for row in found)
    assert all(change.percent == 0.0 for change in found[0].changes.values())
    assert rendered(tables.cell_table(cell, found)).count(tables.NOT_RUN) == 2 * len(printed.LEARNED)


def test_a_small_run_of_the_other_tables() -> None:
    orders = {
        order.value: play.rows(replace(cell, requests=60), ("JSQ",), [1])
        for order, cell in cells.ordered_cells().items()
    }
    assert "BinPacking" in rendered(tables.orders_table(orders))
    two = two_instances.study([1], 60)
    assert set(two) == set(printed.TWO_INSTANCES_S)
    assert all(len(scenarios) == len(printed.SCENARIOS) for scenarios in two.values())
    assert "HL, then LH" in rendered(tables.two_instances_table(two))
    assert "31" in rendered(tables.mixing_table(mixing.measure()))
    assert "two-instance mixes" in rendered(tables.assumptions_table())


def test_claims_are_computed_from_the_rows() -> None:
    found = {name: play.rows(replace(cell, requests=60), cell.routes, [1, 2]) for name, cell in CELLS.items()}
    varied = {
        name: {title: play.rows(replace(cell, requests=60), PROBES, [1, 2]) for title, cell in of.items()}
        for name, of in variations.all_variations().items()
    }
    two = two_instances.study([1], 60)
    held = {claim.statement: claim for claim in claims.of_all(found, mixing.measure(), two, varied)}
    assert len(held) == 22
    lone = next(claim for statement, claim in held.items() if statement.startswith("a lone"))
    assert (lone.paper, lone.holds) == ("17 and 31", True)
    time = next(claim for statement, claim in held.items() if "2,000 requests" in statement)
    assert not time.holds  # 60 requests do not take what 2,000 take
    assert "what reproduces" in rendered(tables.claims_table(list(held.values())))


def test_without_a_watermark_engines_preempt_more() -> None:
    cell = replace(CELLS["v100-4"], requests=1_600)
    bare = replace(cell, engine=replace(cell.engine, watermark_fraction=0.0))
    with_one, without = (play.episode(one, "RoundRobin", 1)["preemptions"] for one in (cell, bare))
    assert without > with_one > 0


def test_variations_change_one_thing_and_run() -> None:
    for name, varied in variations.all_variations().items():
        titles = list(varied)
        assert varied[titles[0]] == CELLS[name]
        assert all(varied[title] != CELLS[name] for title in titles[1:])
    small = replace(variations.all_variations()["v100-4"]["300 KV blocks"], requests=60)
    found = play.rows(small, PROBES, [1])
    assert set(PROBES) <= set(ROUTES)
    assert "300 KV blocks" in rendered(tables.variations_table("v100-4", {"300 KV blocks": found}))


def test_a_run_with_an_unfinished_request_has_no_makespan() -> None:
    cell = replace(CELLS["v100-4"], requests=5)
    too_small = cell.with_profile(replace(cell.engine.profile, kv_tokens=16))
    with pytest.raises(RuntimeError, match="did not finish"):
        play.episode(too_small, "RoundRobin", 1)


def test_the_command_line_has_its_defaults() -> None:
    options = arguments([])
    assert (options.seeds, options.first_seed, options.quick) == (20, 0, False)


def rendered(table: Table) -> str:
    console = Console(width=240, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
