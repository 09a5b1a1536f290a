from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from llmrouter import cli
from llmrouter.errors import InvalidInputError
from llmrouter.resources import PoolSpec
from llmrouter.sim.model import Schedule
from llmrouter.validation import command
from llmrouter.validation.engines import Coefficients, MeasuredEngine, Reuse, Split, dump, parse, shipped
from llmrouter.validation.fit import FitOptions, fit, free_parameters, loss
from llmrouter.validation.judge import compare, judge
from llmrouter.validation.measured import MeasuredRun
from llmrouter.validation.own import Settings, fit_own, pool_yaml, profile_document
from llmrouter.validation.plan import plan, two_rates
from llmrouter.validation.replay import Replay, replay
from llmrouter.validation.report import summaries

if TYPE_CHECKING:
    from pathlib import Path

TRUTH = MeasuredEngine(
    name="truth",
    layout="requests",
    runs="^truth-",
    group="truth",
    coefficients=Coefficients(
        base_decode_s=0.012,
        base_prefill_s=0.011,
        prefill_s_per_token=60e-6,
        prefill_s_per_token_squared=1e-9,
        context_s_per_token=110e-9,
        sequence_s=45e-6,
        front_s=0.008,
        front_s_per_token=1e-6,
        prefill_sequence_s=1e-6,
        kv_tokens=100_000,
    ),
    max_sequences=128,
    token_budget=2_048,
)


def a_run(name: str, rate_rps: float, *, count: int = 60, engine: MeasuredEngine = TRUTH, seed: int = 0) -> MeasuredRun:
    """A run as if measured on ``engine``."""
    rng = np.random.default_rng(seed)
    arrived_at_s = np.cumsum(rng.exponential(1 / rate_rps, count))
    blank = MeasuredRun(
        set_name="set",
        name=name,
        layout="requests",
        arrived_at_s=arrived_at_s - arrived_at_s[0],
        prompt_tokens=rng.integers(20, 1_500, count),
        output_tokens=rng.integers(1, 200, count),
        ttft_s=np.ones(count),
        e2e_s=np.ones(count),
        session=np.full(count, -1),
        measured=np.ones(count, np.bool_),
    )
    times = replay(engine, blank, draws=1)
    return replace(blank, ttft_s=times.ttft_s[0], e2e_s=times.e2e_s[0])


def write(path: Path, runs: list[MeasuredRun]) -> None:
    lines = ["run,arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s"]
    for run in runs:
        columns = (run.arrived_at_s, run.prompt_tokens, run.output_tokens, run.ttft_s, run.e2e_s)
        lines += [f"{run.name},{at},{p},{o},{t},{e}" for at, p, o, t, e in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n")


def test_a_replay_on_the_true_engine_has_no_error() -> None:
    run = a_run("truth-1", 3.0)
    errors = compare(run, replay(TRUTH, run, draws=1))
    assert all(error == pytest.approx(0.0, abs=1e-12) for error in errors.values())


def test_errors_are_simulated_over_measured_less_one_and_unknown_is_none() -> None:
    run = replace(a_run("truth-1", 3.0), output_tokens=np.ones(60, np.int64))
    twice = Replay(2 * run.ttft_s[None], 2 * run.e2e_s[None])
    errors = compare(run, twice)
    assert errors["ttft_p50"] == pytest.approx(1.0)
    assert errors["e2e_p99"] == pytest.approx(1.0)
    assert errors["tpot_mean"] is None


def test_a_fit_recovers_the_latencies_of_runs_it_has_not_seen() -> None:
    runs = [a_run(f"truth-{rate}", rate, seed=seed) for seed, rate in enumerate((1.0, 4.0))]
    unseen = a_run("truth-2.5", 2.5, seed=9)
    off = {"base_decode_s": 0.016, "prefill_s_per_token": 40e-6, "context_s_per_token": 60e-9, "front_s": 0.012}
    start = replace(TRUTH, coefficients=replace(TRUTH.coefficients, **off))
    before = compare(unseen, replay(start, unseen, draws=1))
    told: list[int] = []
    options = FitOptions(starts=2, evaluations=150)
    fitted = fit(start, runs, tuple(off), options=options, on_evaluation=lambda done, _: told.append(done))
    after = compare(unseen, replay(fitted, unseen, draws=1))
    for name in ("ttft_p50", "tpot_mean", "e2e_mean"):
        assert abs(after[name] or 0.0) < 0.03 < abs(before[name] or 0.0)
    assert fitted.fitted_on == ("truth-1.0", "truth-4.0")
    assert told == sorted(told)
    assert loss(fitted, runs, ttft_weight=0.5) < loss(start, runs, ttft_weight=0.5)
    again = fit(start, runs, tuple(off), options=options)
    assert again.coefficients == fitted.coefficients


def test_two_rates_are_the_highest_below_saturation_and_a_low_one() -> None:
    rates = (0.5, 1.0, 2.0, 4.0, 400.0)
    picked = two_rates([a_run(f"truth-{rate}", rate, count=120) for rate in rates])
    assert [run.name for run in picked] == ["truth-1.0", "truth-4.0"]


def test_an_unknown_deployment_is_fitted_on_two_of_its_rates_and_a_known_one_is_not() -> None:
    runs = [a_run(f"mystery-{rate}", rate) for rate in (1.0, 2.0, 4.0)] + [a_run("truth-1", 1.0)]
    made = plan(runs, [TRUTH], refit=False)
    known, new = sorted(made.assignments, key=lambda assignment: assignment.engine.name, reverse=True)
    assert known.engine is TRUTH
    assert known.fit_on == ()
    assert new.engine.name == "set: mystery"
    assert len(new.runs) == 3
    assert [run.name for run in new.fit_on] == ["mystery-1.0", "mystery-4.0"]
    refit = plan([a_run("truth-1", 1.0), a_run("truth-4", 4.0)], [TRUTH], refit=True)
    assert [run.name for run in refit.assignments[0].fit_on] == ["truth-1", "truth-4"]


@pytest.mark.parametrize(
    ("prompt_tokens", "user", "reuse", "split"),
    [
        (20_000, 7, Reuse.SESSIONS, Split.SESSION),
        (100, 7, Reuse.NONE, Split.RANDOM),
        (1_000, -1, Reuse.SHARE, Split.RANDOM),
    ],
)
def test_an_unknown_deployment_behind_a_chat_benchmark_reuses_prompts_as_its_users_do(
    prompt_tokens: int, user: int, reuse: Reuse, split: Split
) -> None:
    run = a_run("zeta-2replicas/long_input_1.5", 1.5)
    run = replace(run, layout="generation", prompt_tokens=np.full(60, prompt_tokens), session=np.full(60, user))
    (made,) = plan([run], shipped(), refit=False).assignments
    assert (made.engine.reuse, made.engine.split, made.engine.replicas) == (reuse, split, 2)
    assert made.engine.name == "set: zeta-2replicas/long_input"


def test_the_only_run_of_an_engine_is_fitted_on_its_first_half_and_judged_on_its_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = plan([run := a_run("mystery-2", 2.0)], [TRUTH], refit=False).assignments
    assert made.halves
    (first,) = made.fit_on
    assert np.flatnonzero(first.measured).tolist() == list(range(30))
    assert np.flatnonzero(run.half(second=True).measured).tolist() == list(range(30, 60))
    write(tmp_path / "set.csv", [run])
    arguments = ("--data", str(tmp_path), "--json", "--out", str(tmp_path), "--starts", "1", "--evaluations", "5")
    (entry,) = told(capsys, *arguments)["runs"]
    assert entry["fitted_on"] == ["mystery-2"]
    assert "judged on the second" in entry["note"]


def test_runs_that_say_too_little_are_listed_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run("short", 2.0, count=2)
    long = replace(a_run("vllm-3", 2.0, count=3), prompt_tokens=np.full(3, 90_000))
    silent = replace(a_run("vllm-4", 2.0, count=3), ttft_s=np.zeros(3))
    at_once = replace(a_run("vllm-5", 2.0, count=5), arrived_at_s=np.zeros(5))
    write(tmp_path / "set.csv", [run, long, silent, at_once])
    found = told(capsys, "--data", str(tmp_path), "--json", "--out", str(tmp_path / "out"))["runs"]
    assert [entry["e2e_mean_err"] is None for entry in found] == [True, True, True, False]
    assert "too few measured requests" in found[0]["note"]
    assert "never fits" in found[1]["note"]
    assert "no request of this run has measured latencies" in found[2]["note"]
    assert found[3]["rate_rps"] is None


def test_medians_leave_out_runs_that_were_fitted_on() -> None:
    engine = replace(TRUTH, fitted_on=("truth-1",))
    runs = [a_run("truth-1", 1.0), a_run("truth-2", 2.0)]
    times = [
        Replay(factor * run.ttft_s[None], factor * run.e2e_s[None]) for factor, run in zip((3, 1.1), runs, strict=True)
    ]
    (group,) = summaries([judge(run, engine, one) for run, one in zip(runs, times, strict=True)], by_set=False)
    assert (group["runs"], group["unseen_below_saturation"]) == (2, 1)
    assert group["median_abs_err"]["e2e_mean"] == pytest.approx(0.1)
    assert group["median_abs_err_fitted"]["e2e_mean"] == pytest.approx(2.0)
    assert group["worst"]["run"] == "truth-2"


def test_where_a_queue_order_is_not_modelled_waits_of_saturated_runs_are_not_judged() -> None:
    engine = replace(TRUTH, unjudged="its own queue order")
    verdict = judge(run := a_run("truth-400", 400.0), engine, replay(engine, run, draws=1))
    assert not verdict.below_saturation
    assert verdict.note == "its own queue order"
    assert verdict.errors["ttft_p50"] is None
    assert verdict.errors["makespan"] is not None


def test_cached_prompts_shorten_the_wait_and_are_drawn_the_same_every_time() -> None:
    run = a_run("truth-1", 1.0)
    share = replace(TRUTH, reuse=Reuse.SHARE, coefficients=replace(TRUTH.coefficients, uncached_fraction=0.3))
    cached, again, whole = replay(share, run, draws=3), replay(share, run, draws=3), replay(TRUTH, run, draws=1)
    assert cached.ttft_s.shape == (3, 60)
    assert (cached.ttft_s == again.ttft_s).all()
    assert cached.ttft_s.mean() < 0.8 * whole.ttft_s.mean()


def test_later_turns_find_their_prefix_where_the_user_stays() -> None:
    run = a_run("truth-1", 0.2, count=40)
    run = replace(run, prompt_tokens=np.full(40, 8_000), session=np.arange(40) % 4)
    cold = replace(TRUTH, reuse=Reuse.SESSIONS, replicas=2, split=Split.SESSION, warm_fraction=0.0)
    ttft_s = replay(cold, run, draws=1).ttft_s[0]
    assert (ttft_s[:4] > 4 * ttft_s[8:].max()).all()
    warm = replay(replace(cold, warm_fraction=1.0), run, draws=1).ttft_s[0]
    assert warm.max() < ttft_s[:4].min() / 4


def test_prefill_and_decode_may_stand_apart() -> None:
    run = a_run("truth-1", 1.0)
    apart = replace(TRUTH, decode_instances=1, coefficients=replace(TRUTH.coefficients, transfer_s=0.5))
    gaps_s = [replay(engine, run, draws=1) for engine in (TRUTH, apart)]
    many = run.output_tokens > 1
    assert ((gaps_s[1].e2e_s - gaps_s[1].ttft_s)[0][many] > 0.5).all()
    assert "transfer_s" in free_parameters(apart, kv=False)


def test_a_request_that_never_fits_is_named() -> None:
    run = a_run("truth-1", 1.0)
    small = replace(TRUTH, coefficients=replace(TRUTH.coefficients, kv_tokens=640))
    with pytest.raises(
        InvalidInputError, match=r"run truth-1: request \d+ of .* never fits engine truth, kv_tokens 640"
    ):
        replay(small, run, draws=1)


def test_the_shipped_engines_are_whole_and_each_is_its_own_json() -> None:
    engines = shipped()
    assert len({engine.name for engine in engines}) == len(engines)
    for engine in engines:
        assert engine.instances()
        assert engine.fitted_on
        assert engine.documented
        assert parse(json.loads(json.dumps(dump(engine)))) == engine


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert command.main(arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_judges_known_and_unknown_runs_and_draws_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    known = [a_run(f"vllm-60-{rate}", rate) for rate in (1, 2)]
    write(data / "set.csv", [*known, *(a_run(f"mystery-60-{rate}", rate, seed=rate) for rate in (1, 2, 4))])
    found = told(capsys, "--data", str(data), "--json", "--out", str(out), "--starts", "1", "--evaluations", "20")
    runs = {run["run"]: run for run in found["runs"]}
    assert list(runs) == ["vllm-60-1", "vllm-60-2", "mystery-60-1", "mystery-60-2", "mystery-60-4"]
    for run in runs.values():
        assert run["set"] == "set"
        assert run["below_saturation"] is True
        for figure in ("ttft_p50", "ttft_mean", "ttft_p99", "tpot_mean", "e2e_mean", "e2e_p99", "makespan"):
            assert isinstance(run[f"{figure}_err"], float)
    assert runs["vllm-60-1"]["engine"] == "opt-13b-a100-vllm"
    assert "vllm-60-1" not in runs["vllm-60-1"]["fitted_on"]
    assert runs["mystery-60-2"]["fitted_on"] == ["mystery-60-1", "mystery-60-4"]
    assert {engine["engine"] for engine in found["engines"]} == {"opt-13b-a100-vllm", "set: mystery"}
    page = (out / "engine-validation.html").read_text()
    assert page.count("<svg") == 10
    assert "http" not in page


def test_the_tables_name_what_is_fitted_on_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "set.csv", [a_run(f"vllm-60-{rate}", rate) for rate in (1, 2)])
    assert command.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--runs"]) == 0
    text = capsys.readouterr().out
    assert "opt-13b-a100-vllm: fitted on vllm-100-1" in text
    assert "vllm-60-2" in text
    assert "token_budget: " in text


@pytest.mark.parametrize(
    "arguments",
    [(), ("--data", "x", "--fit", "y"), ("--data", "x", "--starts", "0"), ("--fit", "none.csv")],
)
def test_bad_options_are_one_line_and_status_two(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate-engine", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


SETTINGS = Settings(name="Mine", mode=Schedule.CHUNKED, kv_tokens=100_000, max_sequences=128, token_budget=2_048)


def test_an_engine_of_ones_own_is_fitted_judged_and_printed_as_a_pool() -> None:
    runs = [a_run(f"mine-{rate}", rate, seed=index) for index, rate in enumerate((1.0, 2.5, 4.0))]
    engine, verdicts = fit_own(runs, SETTINGS, FitOptions(starts=1, evaluations=150))
    assert [verdict.seen for verdict in verdicts] == [True, False, True]
    assert abs(verdicts[1].errors["e2e_mean"] or 0.0) < 0.05
    (pool,) = yaml.safe_load(pool_yaml(engine))
    profile = PoolSpec.model_validate(pool).profile.inline
    assert profile is not None
    assert profile.base_decode_seconds == pytest.approx(engine.coefficients.base_decode_s, rel=1e-3)
    assert (profile.kv_tokens, profile.max_sequences, profile.mode) == (100_000, 128, "Chunked")


def test_the_command_fits_files_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "mine.csv", [a_run("low", 1.0), a_run("high", 4.0)])
    arguments = ["--fit", str(tmp_path / "mine.csv"), "--kv-tokens", "100000", "--starts", "1", "--evaluations", "20"]
    assert command.main(arguments) == 0
    captured = capsys.readouterr()
    (pool,) = yaml.safe_load(captured.out)
    PoolSpec.model_validate(pool)
    assert "high" in captured.err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"token_budget": 64}, "token_budget must be at least max_sequences"),
        ({"max_sequences": 0}, "max_sequences must be at least 1, not 0"),
        ({"kv_tokens": 8}, "kv_tokens must be at least one block, not 8"),
        ({"kv_tokens": 320}, "no coefficients near the start finish"),
    ],
)
def test_settings_that_make_no_engine_are_refused(changed: dict[str, Any], message: str) -> None:
    runs = [a_run("mine-1", 1.0)]
    with pytest.raises(InvalidInputError, match=message):
        fit_own(runs, replace(SETTINGS, **changed), FitOptions(starts=1, evaluations=5))


def test_a_profile_outside_the_bounds_of_the_resource_is_refused() -> None:
    slow = replace(TRUTH, coefficients=replace(TRUTH.coefficients, base_decode_s=11.0))
    with pytest.raises(InvalidInputError, match=r"profile truth: base.*[dD]ecode.*less than or equal to 10"):
        profile_document(slow)
