from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from llmrouter.lengths.distribution import LengthDistribution
from llmrouter.lengths.drift import (
    END_WINDOW,
    RANKED_ANSWERS,
    SILENT_ANSWERS,
    WARM_UP_ANSWERS,
    Drift,
    DriftWatch,
)
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest

LAW = LengthDistribution((50.0, 60.0, 80.0, 100.0, 140.0, 200.0, 260.0), own_mean=120.0, own_rank=1.0, source="t")
BELOW_ALL, BELOW, ABOVE, ABOVE_ALL = 40.0, 70.0, 150.0, 300.0
CALM = [BELOW_ALL, *[BELOW, ABOVE] * 4, ABOVE_ALL]
"""Ten answers as the law has it."""


def note(watch: DriftWatch, *tokens: float, application: str = "chat", limit: int | None = None) -> None:
    for one in tokens:
        watch.note(LengthRequest(application=application, max_output_tokens=limit), LAW, one)


def calm(watch: DriftWatch, answers: int = 200, *, application: str = "chat") -> None:
    note(watch, *(CALM * (answers // 10)), application=application)


def found(watch: DriftWatch) -> Drift:
    drift = watch.drift
    assert drift is not None
    return drift


class TestAlarm:
    def test_there_is_none_while_answers_are_as_the_law_has_it(self) -> None:
        watch = DriftWatch()
        calm(watch, 5_000)
        assert watch.drift is None

    @pytest.mark.parametrize(
        ("answers", "reason", "words"),
        [
            (
                [ABOVE_ALL],
                "AnswersLonger",
                "are longer than foretold: of 8 in a row, 100 % were above the 90 % quantile",
            ),
            ([BELOW_ALL], "AnswersShorter", "are shorter than foretold: of 8 in a row, 100 % were below the 10 %"),
            ([ABOVE], "AnswersLonger", "of 32 in a row, 9"),
            ([BELOW], "AnswersShorter", "of 32 in a row, 9"),
            ([BELOW_ALL, ABOVE_ALL], "AnswersLessCertain", "outside the 80 % interval, 20 % expected"),
        ],
    )
    def test_it_says_who_changed_and_how(self, answers: list[float], reason: str, words: str) -> None:
        watch = DriftWatch()
        calm(watch)
        note(watch, *(answers * 30))
        drift = found(watch)
        assert (drift.reason, drift.application) == (reason, "chat")
        assert drift.message.startswith("answers of application 'chat' are ")
        assert words in drift.message

    def test_it_says_since_how_many_answers(self) -> None:
        watch = DriftWatch()
        calm(watch)
        note(watch, *[ABOVE_ALL] * 100)
        drift = found(watch)
        assert 95 <= drift.answers <= 108
        assert drift.message.endswith("for 64 answers or more")

    def test_it_ends_when_answers_are_as_foretold_again(self) -> None:
        watch = DriftWatch()
        calm(watch)
        note(watch, *[ABOVE_ALL] * 20)
        calm(watch, END_WINDOW - 24)
        assert watch.drift is not None
        calm(watch, 90)
        assert watch.drift is None
        calm(watch, 500)
        assert watch.drift is None

    def test_it_stays_while_they_are_not(self) -> None:
        watch = DriftWatch()
        calm(watch)
        for _ in range(200):
            note(watch, *CALM, *[ABOVE_ALL] * 5)
        assert found(watch).answers > 2_500

    def test_what_is_not_known_yet_has_not_changed(self) -> None:
        watch = DriftWatch()
        note(watch, *[ABOVE_ALL] * WARM_UP_ANSWERS)
        assert watch.drift is None
        note(watch, *[ABOVE_ALL] * 8)
        assert watch.drift is not None

    @pytest.mark.parametrize("tokens", [float("nan"), 0.0, -5.0, 1e9])
    def test_lies_are_passed_over(self, tokens: float) -> None:
        watch = DriftWatch()
        calm(watch)
        note(watch, *[tokens] * 200)
        note(watch, *[ABOVE_ALL] * 200, limit=10)
        assert watch.drift is None


class TestTies:
    def test_answers_cut_at_their_limit_are_as_foretold(self) -> None:
        watch = DriftWatch()
        law = LengthDistribution((50.0, 60.0, 80.0, *[100.0] * 4), 90.0, 1.0, "t", max_output_tokens=100.0)
        for tokens in [40.0, 70.0, 70.0, 90.0, *[100.0] * 6] * 200:
            watch.note(LengthRequest(max_output_tokens=100), law, tokens)
        assert watch.drift is None

    @pytest.mark.parametrize("tokens", [3.0, 100.0, 777.0, 5_000.0])
    def test_answers_of_one_length_that_was_learned(self, tokens: float) -> None:
        watch, predictor = DriftWatch(), OnlineQuantiles()
        request = LengthRequest(application="yes or no", prompt_tokens=9)
        for _ in range(400):
            predictor.learn(request, tokens)
        for _ in range(400):
            watch.note(request, predictor.predict([request]).row(0), tokens)
        assert watch.drift is None


class TestGroups:
    def test_one_application_that_changed_is_named(self) -> None:
        watch = DriftWatch()
        for _ in range(200):
            calm(watch, 10, application="calm")
            note(watch, ABOVE_ALL, application="changed")
        assert found(watch).application == "changed"

    def test_one_that_changed_is_named_even_where_it_moves_all_requests(self) -> None:
        watch = DriftWatch()
        for _ in range(100):
            note(watch, *CALM, application="calm")
            note(watch, *[ABOVE_ALL] * 20, application="changed")
        assert watch._overall.alarm is not None
        assert found(watch).application == "changed"

    def test_several_that_changed_are_all_requests(self) -> None:
        watch = DriftWatch()
        for place in range(400):
            note(watch, ABOVE_ALL, application=f"app {place % 3}")
        drift = found(watch)
        assert drift.application is None
        assert drift.message.startswith("answers of all requests are longer")

    def test_strangers_alone_show_in_all_requests(self) -> None:
        watch = DriftWatch()
        for place in range(200):
            note(watch, ABOVE_ALL, application=f"app {place}")
        assert found(watch).application is None

    def test_requests_without_a_label_are_named_so(self) -> None:
        watch = DriftWatch()
        calm(watch, application="")
        note(watch, *[ABOVE_ALL] * 20, application="")
        assert "requests without an application" in found(watch).message

    def test_an_application_that_fell_silent_has_no_alarm(self) -> None:
        watch = DriftWatch()
        calm(watch)
        note(watch, *[ABOVE_ALL] * 20)
        calm(watch, SILENT_ANSWERS - 10, application="other")
        assert found(watch).application == "chat"
        calm(watch, 20, application="other")
        assert watch.drift is None

    def test_the_one_longest_silent_gives_way_with_its_alarm(self) -> None:
        watch = DriftWatch(max_applications=4)
        calm(watch)
        note(watch, *[ABOVE_ALL] * 20)
        for place in range(4):
            note(watch, ABOVE, application=f"app {place}")
        assert watch.applications == 4
        assert watch.drift is None or watch.drift.application is None

    def test_so_many_labels_are_bounded(self) -> None:
        watch = DriftWatch()
        tracemalloc.start()
        try:
            for place in range(5_000):
                note(watch, CALM[place % 10], application=f"{place}" * 100)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert watch.applications == 256
        assert peak < 2 * 2**20

    def test_a_message_is_bounded_and_printable(self) -> None:
        watch = DriftWatch()
        name = "\n\x1b[31m" * 10**5
        calm(watch, application=name)
        note(watch, *[ABOVE_ALL] * 20, application=name)
        message = found(watch).message
        assert len(message) < 300
        assert message.isprintable()


def rank(watch: DriftWatch, ranks: list[float], tokens: list[float]) -> None:
    for one, length in zip(ranks, tokens, strict=True):
        law = LengthDistribution(LAW.quantiles, LAW.expected_tokens, one, "t")
        watch.note(LengthRequest(), law, length)


def somers(ranks: list[float], tokens: list[float]) -> float:
    """By definition, over all pairs."""
    in_order = pairs = 0.0
    for place, (one, length) in enumerate(zip(ranks, tokens, strict=True)):
        for other, its_length in zip(ranks[:place], tokens[:place], strict=True):
            pairs += length != its_length
            in_order += float(np.sign(one - other) * np.sign(length - its_length))
    return in_order / pairs


class TestRanks:
    @pytest.mark.parametrize(("sign", "expected"), [(1.0, 1.0), (-1.0, -1.0), (0.0, 0.0)])
    def test_order_is_kept_turned_or_unknown(self, sign: float, expected: float) -> None:
        watch = DriftWatch()
        tokens = [float(1 + place % 90) for place in range(300)]
        rank(watch, [sign * one for one in tokens], tokens)
        assert watch.rank_correlation == expected

    @pytest.mark.parametrize("answers", [64, RANKED_ANSWERS, RANKED_ANSWERS + 1, 700])
    def test_it_is_somers_d_of_the_last_answers(self, answers: int) -> None:
        rng = np.random.default_rng(answers)
        tokens = [float(one) for one in rng.integers(1, 40, answers)]
        ranks = [float(one) for one in np.round(np.array(tokens) + rng.normal(0, 20, answers), -1)]
        watch = DriftWatch()
        rank(watch, ranks, tokens)
        assert watch.rank_correlation == pytest.approx(somers(ranks[-RANKED_ANSWERS:], tokens[-RANKED_ANSWERS:]))

    def test_few_answers_say_nothing(self) -> None:
        watch = DriftWatch()
        rank(watch, [1.0] * 63, [float(1 + place) for place in range(63)])
        assert watch.rank_correlation is None

    def test_answers_of_one_length_have_no_order(self) -> None:
        watch = DriftWatch()
        rank(watch, [float(place) for place in range(100)], [7.0] * 100)
        assert watch.rank_correlation is None
