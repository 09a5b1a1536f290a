from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmrouter.arrivals import transform
from llmrouter.arrivals.cells import CELL_NAMES, HISTORY_SEED, cell, trace_cell
from llmrouter.arrivals.laws import TraceLaw
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX, PAPER_V100
from llmrouter.sim.model import EngineModel, Schedule
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY = 400_000

PAPER_TABLE = {
    # samples, mean prompt, mean output, share of at least 5 s, bucket accuracy
    "translation": (7_351, 29.09, 61.76, 0.0918, 0.9310),
    "question": (6_988, 29.83, 334.40, 0.5818, 0.7036),
    "sentiment": (6_564, 211.54, 142.53, 0.4101, 0.7992),
    "reading": (7_122, 125.16, 220.02, 0.4795, 0.6527),
    "entities": (3_304, 26.41, 64.10, 0.0871, 0.9506),
}
MIX_TABLE = {
    # share, median prompt, median output
    "chat": (0.45, 350, 220),
    "rag": (0.25, 3_500, 140),
    "code": (0.15, 1_500, 350),
    "classify": (0.10, 500, 8),
    "reasoning": (0.05, 300, 1_400),
}
FIVE_SECONDS_TOKENS = 143


def of_class(workload: Workload, name: str) -> NDArray[np.bool_]:
    return np.asarray(workload.application == workload.applications.index(name))


@cache
def many(name: str) -> Workload:
    return cell(name).workload(13.5, MANY, 3)


class TestDefinitions:
    @pytest.mark.parametrize(
        ("name", "requests", "capacity_rps", "profile"),
        [
            ("paper-v100", 4_000, 13.5, PAPER_V100),
            ("h100-mix", 8_000, 43.5, H100_MIX),
            ("h100-prod", 4_000, 22.5, H100_MIX),
        ],
    )
    def test_engines_runs_and_published_capacity(
        self, name: str, requests: int, capacity_rps: float, profile: object
    ) -> None:
        one = cell(name)
        assert (one.name, one.requests, one.capacity_rps, one.instances) == (name, requests, capacity_rps, 4)
        assert one.warm_fraction == 0.2
        assert one.engine.profile is profile
        assert one.setup.engines == (one.engine,) * 4

    def test_the_engines_are_those_of_the_definition(self) -> None:
        paper, mix = cell("paper-v100").engine.profile, cell("h100-mix").engine.profile
        assert cell("paper-v100").engine.steps_as is Schedule.PREFILL_FIRST
        assert cell("h100-mix").engine.steps_as is Schedule.CHUNKED
        assert (paper.base_decode_s, paper.prefill_s_per_token) == (15.5e-3, 3.2e-4)
        assert (paper.context_s_per_token, paper.sequence_s) == (6e-7, 9e-4)
        assert (paper.kv_tokens, paper.max_sequences, paper.token_budget) == (1_200 * 16, 128, 4_096)
        assert (mix.base_decode_s, mix.prefill_s_per_token) == (6.5e-3, 2.3e-5)
        assert (mix.context_s_per_token, mix.sequence_s) == (5e-8, 2e-5)
        assert (mix.kv_tokens, mix.max_sequences, mix.token_budget) == (25_000 * 16, 256, 2_048)

    def test_an_unknown_cell_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(InvalidInputError, match="no cell 'h200': there are paper-v100, h100-mix, h100-prod, azure"):
            cell("h200")


class TestLengths:
    @pytest.mark.parametrize("name", PAPER_TABLE)
    def test_classes_of_the_paper_s_table(self, name: str) -> None:
        samples, prompt, output, heavy, accuracy = PAPER_TABLE[name]
        one, made = cell("paper-v100"), many("paper-v100")
        rows = of_class(made, name)
        assert rows.mean() == pytest.approx(samples / sum(row[0] for row in PAPER_TABLE.values()), abs=0.004)
        assert made.prompt_tokens[rows].mean() == pytest.approx(prompt, rel=0.01)
        assert made.output_tokens[rows].mean() == pytest.approx(output, rel=0.02)
        assert (made.output_tokens[rows] >= FIVE_SECONDS_TOKENS).mean() == pytest.approx(heavy, abs=0.008)
        assert {law.name: law.bucket_accuracy for law in one.classes}[name] == accuracy

    @pytest.mark.parametrize("name", MIX_TABLE)
    def test_classes_of_the_mix(self, name: str) -> None:
        share, prompt, output = MIX_TABLE[name]
        made = many("h100-mix")
        rows = of_class(made, name)
        assert rows.mean() == pytest.approx(share, abs=0.004)
        assert np.median(made.prompt_tokens[rows]) == pytest.approx(prompt, rel=0.02)
        assert np.median(made.output_tokens[rows]) == pytest.approx(output, rel=0.02)

    def test_the_production_cell_has_the_published_means(self) -> None:
        made = many("h100-prod")
        assert made.output_tokens.mean() == pytest.approx(112.7, rel=0.01)
        mu = math.log(5_526) - 0.5
        assert np.median(made.prompt_tokens) == pytest.approx(math.exp(mu), rel=0.02)
        assert [(made.application == number).mean() for number in range(5)] == pytest.approx([0.2] * 5, abs=0.004)
        medians = [np.median(made.output_tokens[made.application == number]) for number in range(5)]
        expected = np.exp([3.2, 3.8, 4.2, 4.6, 4.9])
        assert np.array(medians) / medians[0] == pytest.approx(expected / expected[0], rel=0.05)

    @pytest.mark.parametrize(
        ("name", "prompts", "outputs"),
        [
            ("paper-v100", (4, 1_000), (1, 1_024)),
            ("h100-mix", (8, 16_384), (1, 4_096)),
            ("h100-prod", (16, 30_000), (1, 2_048)),
        ],
    )
    def test_lengths_are_clipped(self, name: str, prompts: tuple[int, int], outputs: tuple[int, int]) -> None:
        made = many(name)
        assert made.prompt_tokens.min() >= prompts[0]
        assert made.prompt_tokens.max() <= prompts[1]
        assert made.output_tokens.min() >= outputs[0]
        assert made.output_tokens.max() <= outputs[1]


class TestStreams:
    @pytest.mark.parametrize("name", CELL_NAMES)
    def test_another_rate_only_scales_the_gaps(self, name: str) -> None:
        slow, fast = (cell(name).workload(rate, 500, 11) for rate in (2.0, 5.0))
        assert (slow.prompt_tokens == fast.prompt_tokens).all()
        assert (slow.output_tokens == fast.output_tokens).all()
        assert (slow.application == fast.application).all()
        assert slow.arrived_at_s == pytest.approx(fast.arrived_at_s * 2.5)

    @pytest.mark.parametrize("name", CELL_NAMES)
    def test_equal_seeds_are_equal_and_others_differ(self, name: str) -> None:
        first, again, other = (cell(name).workload(2.0, 500, seed) for seed in (4, 4, 5))
        assert (first.arrived_at_s == again.arrived_at_s).all()
        assert (first.output_tokens == again.output_tokens).all()
        assert (first.output_tokens != other.output_tokens).any()
        assert (first.arrived_at_s != other.arrived_at_s).any()

    def test_a_longer_run_begins_like_the_shorter_one(self) -> None:
        short, long = (cell("h100-mix").workload(2.0, count, 4) for count in (100, 1_000))
        assert (long.arrived_at_s[:100] == short.arrived_at_s).all()
        assert (long.prompt_tokens[:100] == short.prompt_tokens).all()
        assert (long.output_tokens[:100] == short.output_tokens).all()

    def test_burstiness_changes_the_gaps_alone(self) -> None:
        poisson, bursty = (cell("h100-mix").workload(2.0, 20_000, 4, cv=cv) for cv in (1.0, 4.0))
        assert (poisson.output_tokens == bursty.output_tokens).all()
        gaps = np.diff(bursty.arrived_at_s)
        assert gaps.std() / gaps.mean() == pytest.approx(4.0, rel=0.15)

    def test_gaps_are_poisson_at_the_rate(self) -> None:
        made = many("paper-v100")
        gaps = np.diff(made.arrived_at_s)
        assert made.rate_rps == pytest.approx(13.5, rel=0.01)
        assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.01)

    def test_nothing_is_predicted_and_the_history_is_of_another_seed(self) -> None:
        one = cell("paper-v100")
        made, history = one.workload(2.0, 300, 0), one.history(300)
        assert not made.predicted_output_tokens.any()
        assert (made.output_tokens != history.output_tokens).any()
        assert (one.workload(1.0, 300, HISTORY_SEED).output_tokens == history.output_tokens).all()

    def test_a_run_has_the_cell_s_requests_and_a_negative_seed_is_refused(self) -> None:
        assert len(cell("paper-v100").workload(2.0)) == 4_000
        with pytest.raises(InvalidInputError, match="seed must be at least 0, not -1"):
            cell("paper-v100").workload(2.0, 10, -1)


class TestRecorded:
    def test_azure_replays_windows_of_the_packaged_trace(self) -> None:
        one = cell("azure")
        trace = one.history()
        assert len(trace) == 10_497
        assert one.classes == ()
        made = one.workload(20.0, 1_000, 3)
        assert set(made.applications) == {"code", "conversation"}
        assert made.rate_rps == pytest.approx(20.0)
        start = next(
            row
            for row in range(len(trace) - 1_000)
            if (trace.prompt_tokens[row : row + 50] == made.prompt_tokens[:50]).all()
        )
        assert (trace.output_tokens[start : start + 1_000] == made.output_tokens).all()
        recorded_s, replayed_s = np.diff(trace.arrived_at_s[start : start + 1_000]), np.diff(made.arrived_at_s)
        assert replayed_s == pytest.approx(recorded_s * replayed_s.sum() / recorded_s.sum(), abs=1e-9)

    def test_a_run_longer_than_the_trace_goes_round(self) -> None:
        trace = Workload.of([0.0, 1.0, 4.0], [1, 2, 3], [1, 1, 1])
        made = TraceLaw(trace).workload(1.0, 9, 5)
        assert len(made) == 9
        assert made.rate_rps == pytest.approx(1.0)
        assert (made.prompt_tokens[:6] == made.prompt_tokens[3:]).all()
        gaps = dict(zip(made.prompt_tokens[1:].tolist(), np.diff(made.arrived_at_s).tolist(), strict=True))
        assert gaps[2] / gaps[1] == pytest.approx(1.0 / 2.0)
        assert gaps[3] / gaps[1] == pytest.approx(3.0 / 2.0)

    def test_prefix_blocks_go_with_their_requests(self) -> None:
        trace = Workload.of(
            [0.0, 1.0, 2.0],
            [32, 16, 48],
            [1, 1, 1],
            prefix_start=[0, 2, 3, 6],
            prefix_blocks=[0, 1, 0, 0, 1, 2],
            prefix_block_tokens=16,
        )
        made = trace_cell("mine", trace, EngineModel(H100_MIX)).workload(2.0, seed=1)
        assert made.name == "mine"
        for row in range(3):
            blocks = made.prefix_blocks[made.prefix_start[row] : made.prefix_start[row + 1]]
            assert blocks.tolist() == list(range(made.prompt_tokens[row] // 16))

    def test_what_has_no_windows_is_refused(self) -> None:
        sessions = Workload.of([0.0, 0.0], [1, 1], [1, 1], after=[-1, 0])
        with pytest.raises(InvalidInputError, match="a trace of sessions has no windows"):
            TraceLaw(sessions)
        with pytest.raises(InvalidInputError, match="at least two requests"):
            TraceLaw(transform.take(sessions, np.array([0])))
        law = TraceLaw(Workload.of([0.0, 1.0], [1, 1], [1, 1]))
        with pytest.raises(InvalidInputError, match="cv cannot be chosen"):
            law.workload(1.0, 2, 0, cv=2.0)
        with pytest.raises(InvalidInputError, match="rate_rps must be positive"):
            law.workload(0.0, 2, 0)
        with pytest.raises(InvalidInputError, match="at one instant"):
            TraceLaw(Workload.of([1.0, 1.0], [1, 1], [1, 1])).workload(1.0, 2, 0)
