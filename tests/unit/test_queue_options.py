"""The queue of a RoutingPolicy and of a command line: what is taken, and what is refused with field and bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest

from llmrouter.config_file import parse
from llmrouter.errors import InvalidConfigError, InvalidInputError
from llmrouter.resources import QueueOrder
from llmrouter.routing.orders import ORDERS, Order
from llmrouter.study import bench_options, simulate_options
from llmrouter.study.configured import read_configured

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.sim.setup import RouterSide

FILE = """\
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {{name: p}}
spec: {{type: LMetric, queue: {queue}}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {{name: r}}
spec:
  models: [{{name: m}}]
  pools: [{{name: a, endpoints: ["x:1"], profile: {{name: h100-mix}}}}]
  policyRef: {{name: p}}
  router: {{replicas: 1}}
"""
QUEUE = "{order: LeastSlack, agingSeconds: 3, fairness: {enabled: true, weights: [{tenant: a, weight: 2}]}}"


def test_the_resource_and_the_library_name_the_same_orders() -> None:
    assert get_args(QueueOrder) == tuple(ORDERS)


def test_the_queue_of_a_file_is_simulated(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(FILE.format(queue=QUEUE))
    side = read_configured(path, {}).routers
    assert (side.order, side.aging_s, side.fair) == (Order.LEAST_SLACK, 3.0, True)
    assert side.tenant_weights == (("a", 2.0),)


@pytest.mark.parametrize(
    ("words", "order", "aging_s", "fair"),
    [
        ([], Order.LEAST_SLACK, 3.0, True),
        (["--order", "ShortestPredicted"], Order.SHORTEST_PREDICTED, 3.0, True),
        (["--aging-s", "5"], Order.LEAST_SLACK, 5.0, True),
    ],
)
def test_the_command_line_goes_before_the_file(
    tmp_path: Path, words: list[str], order: Order, aging_s: float, *, fair: bool
) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(FILE.format(queue=QUEUE))
    side = simulate_options.parse(["--poisson", "1", "--config", str(path), *words]).setup.routers
    assert (side.order, side.aging_s, side.fair) == (order, aging_s, fair)


def bench_side(*words: str) -> RouterSide:
    return bench_options.parse(["--cells", "h100-mix", *words]).plan.cells[0].routers


def test_both_commands_take_an_order_and_tenants() -> None:
    side = bench_side("--order", "HighestResponseRatio", "--fair", "--tenant-weight", "a=2", "--tenant-weight", "b=0.5")
    assert (side.order, side.fair) == (Order.HIGHEST_RESPONSE_RATIO, True)
    assert side.tenant_weights == (("a", 2.0), ("b", 0.5))
    assert bench_side().order is Order.FIRST_COME_FIRST_SERVED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--aging-s", "0"], "aging_s must be 0.1 to 3600, not 0.0"),
        (["--aging-s", "nan"], "aging_s must be 0.1 to 3600, not nan"),
        (["--fair", "--tenant-weight", "a=0"], "weight of tenant 'a' must be 0.001 to 1000, not 0.0"),
        (["--fair", "--tenant-weight", "a=nan"], "weight of tenant 'a' must be 0.001 to 1000, not nan"),
        (["--fair", "--tenant-weight", "a=1e12"], "weight of tenant 'a' must be 0.001 to 1000, not 1e12"),
        (["--fair", "--tenant-weight", "a"], "--tenant-weight must be NAME=W, not 'a'"),
        (["--tenant-weight", "a=2"], "--tenant-weight is a weight of --fair"),
    ],
)
def test_what_is_out_of_bounds_is_named(words: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        bench_side(*words)
    assert message.replace("1e12", str(1e12)) in str(refusal.value)


@pytest.mark.parametrize(
    ("weight", "bound"), [("0", "0.001"), (".nan", "1000"), (".inf", "1000"), ("1.0e+12", "1000"), ("-1", "0.001")]
)
def test_a_files_weight_out_of_bounds_is_refused(weight: str, bound: str) -> None:
    queue = f"{{fairness: {{enabled: true, weights: [{{tenant: a, weight: {weight}}}]}}}}"
    with pytest.raises(InvalidConfigError) as refusal:
        parse(FILE.format(queue=queue))
    assert "weight" in str(refusal.value)
    assert bound in str(refusal.value)


@pytest.mark.parametrize("aging", ["0", ".nan", "1.0e+12"])
def test_a_files_aging_out_of_bounds_is_refused(aging: str) -> None:
    with pytest.raises(InvalidConfigError, match="agingSeconds"):
        parse(FILE.format(queue=f"{{agingSeconds: {aging}}}"))
