from __future__ import annotations

import numpy as np
import pytest

from llmrouter.arrivals import transform
from llmrouter.arrivals.describe import describe
from llmrouter.arrivals.multi_turn import SessionLaw, sessions
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import Workload


def chat(times: list[float], name: str, blocks: list[int]) -> Workload:
    count = len(times)
    return Workload.of(
        times,
        [16] * count,
        list(range(1, count + 1)),
        applications=(name,),
        prefix_start=list(range(count + 1)),
        prefix_blocks=blocks,
        prefix_block_tokens=16,
    )


class TestMerged:
    def test_two_clocks_become_one_and_blocks_stay_apart(self) -> None:
        both = transform.merged([chat([0.0, 2.0], "a", [0, 1]), chat([1.0, 2.0], "b", [0, 0])], "both")
        assert both.arrived_at_s.tolist() == [0.0, 1.0, 2.0, 2.0]
        assert [both.applications[one] for one in both.application] == ["a", "b", "a", "b"]
        assert both.prefix_blocks.tolist() == [0, 2, 1, 2]
        assert both.name == "both"

    def test_later_turns_follow_their_own(self) -> None:
        one = Workload.of([0.0, 0.0, 5.0], [1, 2, 3], [1, 1, 1], after=[-1, 0, -1], think_s=[0.0, 4.0, 0.0])
        both = transform.merged([one, one.scaled_by(0.5)])
        assert both.prompt_tokens.tolist() == [1, 2, 1, 2, 3, 3]
        assert both.after.tolist() == [-1, 0, -1, 2, -1, -1]

    def test_equal_names_are_one(self) -> None:
        assert transform.merged([chat([0.0], "a", [0]), chat([0.0], "a", [0])]).applications == ("a",)

    def test_what_cannot_be_merged_is_refused(self) -> None:
        with pytest.raises(InvalidInputError, match="no workload"):
            transform.merged([])
        other = Workload.of([0.0], [64], [1], prefix_start=[0, 1], prefix_blocks=[0], prefix_block_tokens=32)
        with pytest.raises(InvalidInputError, match=r"blocks of \[16, 32\] tokens"):
            transform.merged([chat([0.0], "a", [0]), other])


class TestPartsOfSessions:
    ROWS = Workload.of(
        [0.0, 0.0, 3.0, 3.0, 3.0], [1, 2, 3, 4, 5], [1] * 5, after=[-1, 0, -1, 2, 3], think_s=[0.0, 9.0, 0.0, 9.0, 9.0]
    )

    def test_the_first_turn_of_every_row(self) -> None:
        assert transform.first_turns(self.ROWS).tolist() == [0, 0, 2, 2, 2]

    def test_a_window_takes_whole_sessions(self) -> None:
        part = transform.window(self.ROWS, 2.0, 5.0)
        assert part.prompt_tokens.tolist() == [3, 4, 5]
        assert part.after.tolist() == [-1, 0, 1]
        assert part.arrived_at_s.tolist() == [1.0, 1.0, 1.0]

    def test_a_turn_is_not_taken_without_the_one_before_it(self) -> None:
        with pytest.raises(InvalidInputError, match="cannot be taken without the turn before it"):
            transform.take(self.ROWS, np.array([0, 3]))
        with pytest.raises(InvalidInputError, match="no request is left"):
            transform.take(self.ROWS, np.array([], np.int64))

    def test_sessions_can_be_set_apart(self) -> None:
        apart = transform.with_starts(self.ROWS, 0.1, np.random.default_rng(2))
        assert apart.arrived_at_s[0] == apart.arrived_at_s[1] < apart.arrived_at_s[2] == apart.arrived_at_s[4]
        with pytest.raises(InvalidInputError, match="rate_rps"):
            transform.with_starts(self.ROWS, 0.0, np.random.default_rng(2))


def test_a_workload_reaches_a_rate() -> None:
    assert transform.scaled_to(chat([1.0, 2.0], "a", [0, 0]), 8.0).arrived_at_s.tolist() == [0.125, 0.25]
    with pytest.raises(InvalidInputError, match="rate_rps"):
        transform.scaled_to(chat([1.0, 2.0], "a", [0, 0]), float("nan"))


class TestSessionLaw:
    def test_turns_think_times_and_prompts_are_those_of_the_law(self) -> None:
        law = SessionLaw(mean_turns=4.0, think_sigma=0.5, max_prompt_tokens=1_000_000, block_tokens=512)
        made = sessions(law, 2.0, 20_000, np.random.default_rng(1))
        firsts = made.after < 0
        assert firsts.sum() == 20_000
        assert len(made) / 20_000 == pytest.approx(4.0, rel=0.03)
        assert np.median(made.think_s[~firsts]) == pytest.approx(10.0, rel=0.03)
        later = np.nonzero(~firsts)[0]
        before = made.after[later]
        assert (made.prompt_tokens[later] > made.prompt_tokens[before] + made.output_tokens[before]).all()
        assert made.rate_rps / 4.0 == pytest.approx(2.0, rel=0.05)

    def test_turns_share_all_of_the_prompt_before_and_tenants_their_system_prompt(self) -> None:
        law = SessionLaw(tenants=2, system_prompt_tokens=100, block_tokens=16)
        made = sessions(law, 1.0, 60, np.random.default_rng(1))
        rows = [
            made.prefix_blocks[begin:end].tolist()
            for begin, end in zip(made.prefix_start, made.prefix_start[1:], strict=False)
        ]
        root = transform.first_turns(made)
        for row, blocks in enumerate(rows):
            assert len(blocks) == made.prompt_tokens[row] // 16
            if made.after[row] >= 0:
                before = rows[made.after[row]]
                assert blocks[: len(before)] == before
            for other in range(row):
                same = made.tenant[row] == made.tenant[other]
                shared = set(blocks) & set(rows[other])
                if root[row] != root[other]:
                    assert shared == (set(blocks[:6]) if same else set())
        assert sorted(set(made.prefix_blocks.tolist())) == list(range(made.prefix_blocks.max() + 1))

    def test_a_session_ends_before_its_prompt_is_too_long(self) -> None:
        law = SessionLaw(mean_turns=50.0, max_prompt_tokens=3_000)
        made = sessions(law, 1.0, 500, np.random.default_rng(1))
        assert made.prompt_tokens.max() <= 3_000
        assert (made.after < 0).sum() == 500

    @pytest.mark.parametrize(
        ("field", "bad"),
        [("tenants", 0), ("mean_turns", 0.5), ("think_sigma", -1.0), ("max_prompt_tokens", 1_000), ("block_tokens", 0)],
    )
    def test_an_impossible_law_is_refused(self, field: str, bad: float) -> None:
        with pytest.raises(InvalidInputError, match=f"{field} must be"):
            SessionLaw(**{field: bad})  # type: ignore[arg-type]


class TestDescribe:
    def test_the_numbers_of_a_small_workload(self) -> None:
        times = [0.0, *(60.0 + n for n in range(3)), *(120.0 + n for n in range(3)), 180.0]
        made = Workload.of(times, range(1, 9), range(8, 0, -1), cancelled_after_s=[1.0] + [np.inf] * 7)
        told = describe(made)
        assert (told.requests, told.sessions, told.later_turns, told.cancelled) == (8, 0, 0, 1)
        assert told.duration_s == 180.0
        assert told.rate_rps == pytest.approx(8 / 180)
        counts = np.array([1, 3, 3])
        assert told.idc60 == pytest.approx(counts.var() / counts.mean())
        assert told.length_correlation == pytest.approx(-1.0)
        assert told.prompt_tokens.p50 == 4.5
        assert told.prompt_tokens.max == 8
        assert told.shared_prefix_fraction is None
        assert told.as_mapping()["requests_by_application"] == {"": 8}

    def test_what_one_request_does_not_say_is_unknown(self) -> None:
        told = describe(Workload.of([3.0], [5], [5]))
        assert (told.rate_rps, told.gap_cv, told.idc60, told.length_correlation) == (None, None, None, None)

    def test_shared_prefixes_and_sessions_are_counted(self) -> None:
        told = describe(sessions(SessionLaw(), 1.0, 200, np.random.default_rng(1)))
        assert told.shared_prefix_fraction is not None
        assert 0.5 < told.shared_prefix_fraction < 1.0
        assert told.later_turns == told.requests - 200
        assert told.sessions < 200
        two = chat([0.0, 1.0], "a", [0, 0])
        assert describe(two).shared_prefix_fraction == 0.5
