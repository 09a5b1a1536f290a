"""What a router serves: with a model's law and without, another model, learning without a prompt, what stands ready."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from llmrouter.lengths.artefact import rows_of
from llmrouter.lengths.distribution import LEVELS, LengthDistribution, lengths_of
from llmrouter.lengths.predictor import Batch, LengthRequest, UsageRefusal
from llmrouter.lengths.served import GivenLaws, ServedLengths, certain, limited
from llmrouter.lengths.text import text_features

FLAT = LengthDistribution(tuple(100.0 * level + 50.0 for level in LEVELS), 100.0, 100.0, "model", "d")


def request(
    application: str = "chat", *, given: LengthDistribution | None = None, prompt: str = "Hi."
) -> LengthRequest:
    known = LengthRequest(prompt=prompt, prompt_tokens=3, application=application, model="m")
    return replace(known, prompt=None, given=given, features=text_features([known]))


def taught(served: ServedLengths, asked: LengthRequest, output_tokens: float, *, answers: int = 40) -> None:
    for _ in range(answers):
        assert served.learn(asked, output_tokens) is None


def test_requests_with_and_without_a_law_are_answered_in_order() -> None:
    served = ServedLengths()
    served.use("model", "d")
    laws = served.predict([request(), request(given=FLAT), request("mail"), request("mail", given=FLAT)])
    assert [law.source for law in laws] == ["application-quantiles+calibrated", "model+online"] * 2
    assert [law.digest for law in laws] == ["", "d"] * 2


def test_a_law_of_another_model_is_not_blended_in() -> None:
    served = ServedLengths()
    served.use("model", "another digest")
    assert served.predict([request(given=FLAT)])[0].source == "application-quantiles+calibrated"


def test_both_learn_from_every_answer() -> None:
    served = ServedLengths()
    served.use("model", "d")
    taught(served, request(given=FLAT), 700.0)
    for given in (None, FLAT):
        assert served.predict([request(given=given)])[0].expected_tokens == pytest.approx(700, rel=0.2)
    taught(served, request("mail"), 20.0)
    assert served.predict([request("mail")])[0].expected_tokens == pytest.approx(20, rel=0.1)
    assert served.predict([request("mail", given=FLAT)])[0].expected_tokens < 300


def test_another_model_leaves_what_was_learned_of_applications() -> None:
    served = ServedLengths()
    served.use("model", "d")
    taught(served, request(given=FLAT), 700.0)
    served.use("model", "e")
    law = replace(FLAT, digest="e")
    assert served.predict([request()])[0].expected_tokens == pytest.approx(700, rel=0.2)
    taught(served, request(given=law), 700.0, answers=5)
    assert served.predict([request(given=law)])[0].expected_tokens > 300


def test_words_are_learned_without_the_prompt() -> None:
    served = ServedLengths()
    served.use("model", "d")
    rng = np.random.default_rng(3)
    long, short = request(given=FLAT, prompt="write an essay"), request(given=FLAT, prompt="yes or no")
    for _ in range(120):
        for asked, mean in ((long, 600.0), (short, 6.0)):
            served.learn(asked, float(rng.poisson(mean) + 1))
    laws = served.predict([long, short])
    assert laws[0].quantiles[1] > laws[1].quantiles[-2]
    assert laws[0].rank > laws[1].rank


def test_what_cannot_be_true_changes_nothing() -> None:
    served = ServedLengths()
    law = served.predict([request()])[0]
    assert served.learn(request(), -1.0) is UsageRefusal.NOT_POSITIVE
    assert served.learn(request(), float("nan")) is UsageRefusal.NOT_A_NUMBER
    assert served.predict([request()])[0] == law
    assert served.of_application(request()) is None


def test_the_last_law_of_an_application_stands_ready_within_any_limit() -> None:
    served = ServedLengths()
    taught(served, request("chat"), 100.0)
    ready = served.of_application(request("chat"))
    assert ready is not None
    assert ready.expected_tokens == pytest.approx(100, rel=0.2)
    cut = served.of_application(replace(request("chat"), max_output_tokens=7))
    assert cut is not None
    assert cut.expected_tokens == pytest.approx(7)
    assert cut.max_output_tokens == 7
    stranger = served.of_application(request("never heard of"))
    assert stranger is not None
    assert served.of_application(replace(request(), model="another")) is None


def test_no_more_applications_stand_ready_than_may() -> None:
    served = ServedLengths(remembered=10)
    for place in range(50):
        asked = request(f"application-{place}")
        served.learn(asked, 9.0)
        assert served.remembered <= 10
    assert served.of_application(request("application-49")) is not None


def test_a_given_law_has_to_be_given() -> None:
    with pytest.raises(ValueError, match="no law"):
        GivenLaws("model").predict([request()])


def test_a_certain_length_is_within_the_requests_limit() -> None:
    assert certain(300, request(), source="constant").expected_tokens == 300
    law = certain(300, replace(request(), max_output_tokens=40), source="constant")
    assert (law.expected_tokens, law.quantiles, law.source) == (40, (40.0,) * len(LEVELS), "constant")
    assert limited(law, None) is law


@pytest.mark.parametrize("late", [0, 400])
def test_answers_that_come_hundreds_late_are_learned_as_well(*, late: int) -> None:
    served = ServedLengths()
    served.use("model", "d")
    rng = np.random.default_rng(5)
    asked = {name: request(name, given=FLAT) for name in ("chat", "mail", "code")}
    means = {"chat": 5.5, "mail": 3.0, "code": 6.5}
    in_flight: deque[tuple[str, float]] = deque()
    errors = []
    for step in range(1_500):
        name = tuple(asked)[step % 3]
        length = float(np.ceil(rng.lognormal(means[name], 0.5)))
        law = served.predict([asked[name]])[0]
        if step >= 1_000:
            errors.append(abs(np.log(law.quantiles[3] / length)))
        in_flight.append((name, length))
        if len(in_flight) > late:
            done, tokens = in_flight.popleft()
            served.learn(asked[done], tokens)
    assert np.mean(errors) < 0.5  # 0.4 where the median is known


def test_a_batch_with_its_arrays_is_answered_as_its_requests_are() -> None:
    """What a router asks in one turn, and what it asks again of one of them when the answer is there."""
    rng = np.random.default_rng(3)
    limits = [None, 200, 40, 900, None, 7]
    asked = [
        LengthRequest(
            prompt=f"Tell {row} stories of {'cats ' * row}",
            prompt_tokens=4 + 30 * row,
            application=("chat", "mail")[row % 2],
            model="m",
            max_output_tokens=limit,
        )
        for row, limit in enumerate(limits)
    ]
    features = text_features(asked)
    laws = lengths_of(
        np.sort(rng.lognormal(5.0, 1.0, (len(asked), len(LEVELS)))),
        source="model",
        digest="d",
        limit_N=Batch(asked).limit_N,
        rank_N=rng.lognormal(5.0, 1.0, len(asked)),
    )
    alone = [
        replace(one, prompt=None, given=given, features=own)
        for one, given, own in zip(asked, laws.rows(), rows_of(features), strict=True)
    ]
    served = ServedLengths(exploration=0.3)
    served.use("model", "d")
    for round_ in range(60):
        one = alone[round_ % len(alone)]
        served.learn(one, float(min(one.max_output_tokens or 1_000, int(rng.integers(1, 400)))))
    together = served.predict(Batch(alone, features=features, laws=laws))
    for law, one in zip(together, alone, strict=True):
        (again,) = served.predict([one])
        assert law.latent == pytest.approx(again.latent, rel=1e-6)
        assert law.rank == pytest.approx(again.rank, rel=1e-6)
        assert (law.source, law.max_output_tokens) == (again.source, again.max_output_tokens)
