from __future__ import annotations

import numpy as np
import pytest

from llmrouter.arrivals import predictions
from llmrouter.arrivals.cells import cell
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import Workload


def workload(applications: tuple[str, ...], application: list[int], outputs: list[int]) -> Workload:
    count = len(outputs)
    return Workload.of(list(range(count)), [1] * count, outputs, application=application, applications=applications)


HISTORY = workload(("a", "b", "unseen"), [0, 0, 1], [10, 20, 600])
NOW = workload(("b", "a", "new"), [0, 1, 2, 1], [1, 2, 3, 4])


def test_none_is_one_constant_of_the_history() -> None:
    assert predictions.none(NOW, HISTORY).tolist() == [210.0] * 4


def test_the_task_mean_is_looked_up_by_name_and_new_tasks_take_the_mean() -> None:
    assert predictions.task_mean(NOW, HISTORY).tolist() == [600.0, 15.0, 210.0, 15.0]


def test_what_learns_never_reads_the_lengths_it_speaks_of() -> None:
    others = workload(("b", "a", "new"), [0, 1, 2, 1], [9_000, 1, 70, 800])
    for learnt in (predictions.none, predictions.task_mean):
        assert (learnt(NOW, HISTORY) == learnt(others, HISTORY)).all()


def test_the_oracle_is_the_truth_and_noise_is_about_it() -> None:
    made = cell("h100-mix").workload(1.0, 50_000, 1)
    assert (predictions.oracle(made) == made.output_tokens).all()
    assert (predictions.noisy(made, np.random.default_rng(1), sigma=0.0) == made.output_tokens).all()
    ratio = np.log(predictions.noisy(made, np.random.default_rng(1), sigma=0.5) / made.output_tokens)
    long = made.output_tokens > 20
    assert ratio[long].mean() == pytest.approx(0.0, abs=0.02)
    assert ratio[long].std() == pytest.approx(0.5, rel=0.03)
    with pytest.raises(InvalidInputError, match="sigma must be 0 to 10"):
        predictions.noisy(made, np.random.default_rng(1), sigma=-1.0)


def test_buckets_are_the_paper_s() -> None:
    assert predictions.buckets_of(np.array([1, 249, 250, 999, 1_000, 9_999])).tolist() == [0, 0, 1, 1, 2, 2]
    assert predictions.bucket_values(HISTORY) == (15.0, 600.0, 2_500.0)


def test_the_classifier_is_as_often_right_as_it_is_said_to_be() -> None:
    one = cell("paper-v100")
    made = one.workload(1.0, 200_000, 1)
    accuracy = {law.name: law.bucket_accuracy for law in one.classes if law.bucket_accuracy is not None}
    assert len(accuracy) == 5
    values = predictions.bucket_values(one.history())
    classifier = predictions.BucketClassifier(accuracy=accuracy, values=values)
    said = predictions.paper_bucket(made, np.random.default_rng(3), classifier)
    assert set(np.unique(said)) == set(values)
    right = said == np.array(values)[predictions.buckets_of(made.output_tokens)]
    for number, name in enumerate(made.applications):
        assert right[made.application == number].mean() == pytest.approx(accuracy[name], abs=0.01)
    unknown = predictions.BucketClassifier(accuracy={}, values=values, default_accuracy=1.0)
    assert (predictions.paper_bucket(made, np.random.default_rng(3), unknown)[right] == said[right]).all()


@pytest.mark.parametrize(
    ("accuracy", "values", "words"),
    [({"a": 1.5}, (1.0, 2.0, 3.0), "accuracy of a must be 0 to 1"), ({}, (1.0, 0.0, 3.0), "bucket values")],
)
def test_an_impossible_classifier_is_refused(
    accuracy: dict[str, float], values: tuple[float, float, float], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        predictions.BucketClassifier(accuracy=accuracy, values=values)


def test_a_model_of_one_s_own_is_asked_once_and_checked() -> None:
    said = predictions.forest(NOW, lambda asked: np.log1p(asked.prompt_tokens) * 10)
    assert said == pytest.approx([10 * np.log(2)] * 4)
    with pytest.raises(InvalidInputError, match=r"answered shape \(2,\), not \(4,\)"):
        predictions.forest(NOW, lambda _: np.zeros(2))
    with pytest.raises(InvalidInputError, match="said nan of row 1"):
        predictions.forest(NOW, lambda _: np.array([1.0, np.nan, 1.0, 1.0]))
