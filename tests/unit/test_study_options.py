"""Command lines of bench and simulate: what they mean, and one clear line for what is wrong with them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from llmrouter.artefacts import builtin_model
from llmrouter.errors import InvalidInputError
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.resources import PolicyType
from llmrouter.routing.rules import Rule
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study import bench_options, simulate_options
from llmrouter.study.cells import DEFAULT_CELLS, build_cell
from llmrouter.study.contenders import BASE, CONTENDERS, DEFAULT, Kind, chosen_contenders, contender
from llmrouter.study.plan import points_of, timeline_points
from llmrouter.study.predictors import Predictor, forest_tokens, predicted
from llmrouter.study.seeds import FINAL, SELECTION
from router_grpc.adapters.length_models import load_lengths

if TYPE_CHECKING:
    from numpy.typing import NDArray

CSV = "arrival_s,application,prompt_tokens,output_tokens\n0.0,code,100,20\n1.0,chat,200,10\n3.0,code,50,5\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    path.write_text(CSV)
    return path


def test_by_default_it_is_the_whole_protocol() -> None:
    options = bench_options.parse([])
    plan = options.plan
    assert tuple(cell.name for cell in plan.cells) == DEFAULT_CELLS
    assert plan.loads == (0.5, 0.8, 0.95, 1.1)
    assert plan.seed_range == range(1_000, 1_020)
    assert plan.block is SELECTION
    assert set(plan.policies) == {one.name for one in CONTENDERS.values() if one.in_all}
    assert options.out == Path("build/bench")


def test_quick_is_less_of_everything_unless_it_is_said() -> None:
    plan = bench_options.parse(["--quick"]).plan
    assert len(plan.cells) == 3
    assert DEFAULT in plan.policies
    said = bench_options.parse(["--quick", "--seeds", "2", "--loads", "1.1", "--cells", "azure"]).plan
    assert (said.seeds, said.loads, [cell.name for cell in said.cells]) == (2, (1.1,), ["azure"])


def test_final_takes_the_final_seeds() -> None:
    plan = bench_options.parse(["--final"]).plan
    assert (plan.block, plan.first_seed) == (FINAL, FINAL.first)


def test_a_setting_is_of_every_cell() -> None:
    words = ["--cells", "h100-mix,h100-prod", "--instances", "8", "--slow-instance", "2", "--routers", "4"]
    plan = bench_options.parse([*words, "--refresh-ms", "500", "--dispatch-ms", "5", "--private"]).plan
    for spec in plan.cells:
        setup = build_cell(spec).setup
        assert len(setup.engines) == 8
        assert setup.engines[-1].profile.base_decode_s == 2 * setup.engines[0].profile.base_decode_s
        side = setup.routers
        assert (side.routers, side.shared, side.refresh_s, side.dispatch_s) == (4, False, 0.5, 0.005)


def test_a_trace_is_a_cell_of_its_own(trace: Path) -> None:
    plan = bench_options.parse(["--trace", str(trace), "--requests", "7"]).plan
    (spec,) = plan.cells
    cell = build_cell(spec)
    assert (spec.name, cell.requests, cell.is_recorded) == ("mine", 7, True)
    assert len(cell.workload_at(2.0, 7, 1)) == 7


def test_a_cell_with_a_rate_of_its_own_has_one_point() -> None:
    plan = bench_options.parse(["--cells", "paper-own,h100-mix", "--loads", "0.5,1.1"]).plan
    points = points_of(plan, {"paper-own": 13.3, "h100-mix": 40.0})
    assert [(point.cell.name, point.load, point.rate_rps) for point in points] == [
        ("paper-own", 1.504, 20.0),
        ("h100-mix", 0.5, 20.0),
        ("h100-mix", 1.1, 44.0),
    ]
    assert [point.load for point in timeline_points(plan, points)] == [1.504, 0.5]


def test_warm_up_is_dropped_below_capacity_only() -> None:
    cells = {spec.name: build_cell(spec) for spec in bench_options.parse(["--cells", "paper-own,h100-mix"]).plan.cells}
    assert cells["h100-mix"].warm_up_fraction(0.95) == 0.2
    assert cells["h100-mix"].warm_up_fraction(1.0) == 0.0
    assert cells["paper-own"].warm_up_fraction(0.5) == 0.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cells", "h100"], "no cell 'h100'"),
        (["--policies", "Best"], "no policy 'Best'"),
        (["--policies", ","], "--policies names none"),
        (["--loads", "0"], "--loads"),
        (["--loads=-0.5,0.8"], "--loads"),
        (["--loads", "nan"], "--loads"),
        (["--loads", "0.5,x"], "'x'"),
        (["--loads", "11"], "at most 10"),
        (["--loads", ",".join(f"{0.5 + i / 100}" for i in range(33))], "more than 32"),
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "1001"], "no one block"),
        (["--first-seed", "9000"], "--final"),
        (["--requests", "0"], "--requests"),
        (["--requests", "100000000"], "--requests"),
        (["--instances", "0"], "--instances"),
        (["--instances", "5000"], "--instances"),
        (["--profile", "h200"], "no profile 'h200'"),
        (["--slow-instance", "0"], "--slow-instance"),
        (["--cells", "azure", "--cv", "2"], "recorded"),
        (["--cells", "h100-mix", "--cv", "-1"], "--cv"),
        (["--routers", "0"], "routers"),
        (["--refresh-ms", "-1"], "refresh_s"),
        (["--jobs", "0"], "--jobs"),
        (["--format", "csv"], "--trace"),
        (["--trace", "/nowhere/t.csv"], "/nowhere/t.csv"),
    ],
)
def test_what_is_wrong_with_bench_is_said_in_a_line(words: list[str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        bench_options.parse(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("arrival_s,prompt_tokens\n0,1\n", "bad.csv"),
        (CSV + "2.0,code,50,5\n", "line 5"),
        (CSV + "4.0,code,-1,5\n", "line 5"),
        (CSV + "4.0,code,99999999999,5\n", "line 5"),
        ("arrival_s,application,prompt_tokens,output_tokens\n", "bad.csv"),
    ],
)
def test_a_trace_that_is_wrong_is_one_line_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=said):
        bench_options.parse(["--trace", str(path)])


def test_a_truncated_file_is_refused_or_counted(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.gz"
    whole = gzip.compress((CSV + "".join(f"{4 + i},code,50,5\n" for i in range(5_000))).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInputError, match=r"cut\.csv\.gz"):
        bench_options.parse(["--trace", str(path)])
    (spec,) = bench_options.parse(["--trace", str(path), "--skip-bad-lines"]).plan.cells
    assert "1" in build_cell(spec).skipped


def test_contenders_are_unique_and_make_fresh_policies() -> None:
    assert next(iter(CONTENDERS)) == BASE
    assert CONTENDERS[DEFAULT].kind is Kind.OURS
    for one in CONTENDERS.values():
        assert one.make() is not one.make()
        assert (one.kind is Kind.BOUND) == (one.predictor is Predictor.ORACLE)
    default = CONTENDERS[DEFAULT].make()
    assert isinstance(default, CompiledPolicy)
    assert (default.rule, default.kv_fraction, default.max_requests) == (Rule.MARGINAL_COST, 1.0, None)


def test_the_base_is_always_among_the_chosen_and_first() -> None:
    assert [one.name for one in chosen_contenders("LMetric,random,LMetric")] == [BASE, "LMetric", "Random"]
    assert contender("lmetric") is CONTENDERS["LMetric"]


def test_every_type_of_routing_policy_can_be_asked_for() -> None:
    types = {name for part in get_args(PolicyType) for name in (get_args(part) or (part,))} - {"Learned"}
    assert {contender(name).name for name in types} <= set(CONTENDERS)
    assert contender("Onnx") is contender("marginal-cost") is CONTENDERS[DEFAULT]


def test_simulate_takes_a_trace_as_it_came(trace: Path) -> None:
    scenario = simulate_options.parse(["--trace", str(trace)])
    assert scenario.rate_rps == pytest.approx(1.0)
    assert scenario.traffic.at(1.0).arrived_at_s.tolist() == [0.0, 1.0, 3.0]
    assert [one.name for one in scenario.contenders] == [BASE, DEFAULT]
    faster = simulate_options.parse(["--trace", str(trace), "--speed-up", "2"])
    assert faster.rate_rps is not None
    assert faster.traffic.at(faster.rate_rps).arrived_at_s.tolist() == pytest.approx([0.0, 0.5, 1.5])


def test_simulate_makes_requests_of_given_lengths() -> None:
    words = ["--poisson", "5", "--prompt-tokens", "300", "--output-tokens", "40:0.5", "--requests", "4000"]
    workload = simulate_options.parse(words).traffic.at(5.0)
    assert (workload.prompt_tokens == 300).all()
    assert workload.output_tokens.mean() == pytest.approx(40, rel=0.05)
    assert workload.rate_rps == pytest.approx(5, rel=0.05)


def test_simulate_takes_engines_by_profile_and_number() -> None:
    words = ["--poisson", "5", "--profile", "h100-mix:3", "--profile", "paper-v100"]
    names = [engine.profile.name for engine in simulate_options.parse(words).setup.engines]
    assert names == ["h100-mix"] * 3 + ["paper-v100"]
    more = simulate_options.parse([*words, "--instances", "6"])
    assert len(more.setup.engines) == 6
    assert len(simulate_options.parse(["--cell", "paper-v100"]).setup.engines) == 4


def test_load_and_scale_load_are_one_thing() -> None:
    for word in ("--load", "--scale-load"):
        scenario = simulate_options.parse(["--cell", "h100-mix", word, "0.7"])
        assert (scenario.load, scenario.rate_rps) == (0.7, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--poisson", "0"], "--poisson"),
        (["--poisson", "nan"], "--poisson"),
        (["--poisson", "1", "--prompt-tokens", "0"], "--prompt-tokens"),
        (["--poisson", "1", "--output-tokens", "many"], "--output-tokens"),
        (["--poisson", "1", "--requests", "0"], "--requests"),
        (["--poisson", "1", "--policy", "Best"], "no policy"),
        (["--poisson", "1", "--profile", "x"], "no profile"),
        (["--poisson", "1", "--profile", "h100-mix:0"], "--profile"),
        (["--poisson", "1", "--instances", "zero"], "--instances"),
        (["--poisson", "1", "--seed", "9001"], "--seed"),
        (["--poisson", "1", "--warm-up", "1"], "--warm-up"),
        (["--poisson", "1", "--model", "m"], "--model"),
        (["--poisson", "1", "--max-wait-s", "0"], "max_wait_s"),
        (["--poisson", "1", "--format", "csv"], "--trace"),
        (["--cell", "h100-mix", "--load", "0"], "--load"),
        (["--cell", "h100-mix", "--load", "99"], "--load"),
        (["--cell", "h100-mix", "--rate", "-1"], "--rate"),
        (["--cell", "h100-mix", "--speed-up", "2"], "--speed-up"),
        (["--cell", "azure", "--cv", "2"], "recorded"),
        (["--poisson", "1", "--config", "/nowhere.yaml"], "nowhere"),
    ],
)
def test_what_is_wrong_with_simulate_is_said_in_a_line(words: list[str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        simulate_options.parse(words)
    assert "\n" not in str(caught.value)


def test_predictions_that_were_recorded_are_used(tmp_path: Path) -> None:
    path = tmp_path / "told.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,predicted_output_tokens\n0,10,20,30\n1,10,20,40\n")
    (spec,) = bench_options.parse(["--trace", str(path)]).plan.cells
    assert build_cell(spec).predictor is Predictor.RECORDED
    assert simulate_options.parse(["--trace", str(path)]).predictor is Predictor.RECORDED


def test_predictions_that_are_missing_are_not_made_up(trace: Path) -> None:
    workload = simulate_options.parse(["--trace", str(trace)]).traffic.history
    with pytest.raises(InvalidInputError, match="--predictor recorded"):
        predicted(workload, Predictor.RECORDED, workload, seed=1)


def test_each_predictor_says_what_it_is_named_for() -> None:
    cell = build_cell(bench_options.parse(["--cells", "paper-v100"]).plan.cells[0])
    workload = cell.workload_at(10.0, 2_000, 1)

    def said(predictor: Predictor) -> NDArray[np.float64]:
        made = predicted(workload, predictor, cell.history, seed=1, bucket_accuracy=cell.bucket_accuracy)
        return made.predicted_output_tokens

    assert (said(Predictor.ORACLE) == workload.output_tokens).all()
    assert len(np.unique(said(Predictor.NONE))) == 1
    assert len(np.unique(said(Predictor.TASK_MEAN))) == 5
    assert len(np.unique(said(Predictor.BUCKET))) == 3
    assert said(Predictor.FOREST).min() >= 1.0
    errors = {one: np.abs(said(one) - workload.output_tokens).mean() for one in (Predictor.NONE, Predictor.TASK_MEAN)}
    assert errors[Predictor.TASK_MEAN] < errors[Predictor.NONE]


def test_the_forest_says_what_the_router_would_hear() -> None:
    workload = build_cell(bench_options.parse(["--cells", "azure"]).plan.cells[0]).workload_at(10.0, 200, 1)
    served = load_lengths(*builtin_model("output_length", "random-forest"), expected_sha256=None)
    names = [workload.applications[index] for index in workload.application.tolist()]
    asked = [
        LengthRequest(prompt_tokens=tokens, application=name)
        for tokens, name in zip(workload.prompt_tokens.tolist(), names, strict=True)
    ]
    assert forest_tokens(workload) == pytest.approx(served.laws(asked).expected_tokens)
