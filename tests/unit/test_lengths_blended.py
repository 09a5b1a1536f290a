from __future__ import annotations

import numpy as np
import pytest

from llmrouter.lengths.blended import Blended
from llmrouter.lengths.online_text import OnlineText
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.recalibrated import Recalibrated
from llmrouter.lengths.simple import ConstantLengths

SHORT, LONG = LengthRequest(application="short", model="m"), LengthRequest(application="long", model="m")


def blended(capacity: int = 64) -> Blended:
    return Blended([ConstantLengths(20), ConstantLengths(900)], capacity=capacity)


def test_each_application_trusts_whom_it_should() -> None:
    predictor = blended()
    for _ in range(30):
        predictor.learn(SHORT, 22)
        predictor.learn(LONG, 850)
    assert predictor.weights(SHORT)[0] > 0.95
    assert predictor.weights(LONG)[1] > 0.95
    assert predictor.predict([SHORT, LONG]).expected_tokens == pytest.approx([20, 900], rel=0.2)


def test_a_stranger_trusts_whom_all_trust() -> None:
    predictor = blended()
    assert predictor.weights(LONG) == pytest.approx([0.5, 0.5])
    for _ in range(30):
        predictor.learn(SHORT, 22)
    assert predictor.weights(LONG)[0] > 0.95


def test_trust_is_lost_when_traffic_changes() -> None:
    predictor = blended()
    for _ in range(2_000):
        predictor.learn(SHORT, 22)
    for _ in range(500):
        predictor.learn(SHORT, 880)
    assert predictor.weights(SHORT)[1] > 0.95


def test_so_many_labels_are_bounded() -> None:
    predictor = blended(capacity=16)
    for place in range(500):
        predictor.learn(LengthRequest(application=f"label {place}"), 9)
    assert predictor.groups == 16


def test_weights_add_up() -> None:
    predictor = blended()
    predictor.learn(SHORT, 1_000_000)
    assert np.sum(predictor.weights(SHORT)) == pytest.approx(1.0)


def test_laws_that_are_handed_back_with_their_parts_teach_as_asking_anew_does() -> None:
    asked_anew, handed_back = (Recalibrated(Blended([Recalibrated(ConstantLengths(20)), OnlineText()])) for _ in "12")
    rng = np.random.default_rng(11)
    for tokens in rng.integers(1, 900, size=60).tolist():
        request = LengthRequest(prompt="a few words", application="chat", model="m")
        law = handed_back.predict([request]).row(0, parts=True)
        assert [part.source for part in law.parts[0].parts] == ["constant+calibrated", "online-text"]
        handed_back.learn(request, tokens, law)
        asked_anew.learn(request, tokens)
    assert handed_back.predict([SHORT]).latent == pytest.approx(asked_anew.predict([SHORT]).latent)
    assert handed_back.predict([SHORT]).row(0).parts == ()
