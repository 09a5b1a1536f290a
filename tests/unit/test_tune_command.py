"""``llmrouter tune``: what it refuses, what it writes, and that it writes nothing where nothing is better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from llmrouter import cli
from llmrouter.config_file import parse_policy
from llmrouter.objectives import PRESETS
from llmrouter.profiles import PROFILES
from llmrouter.resources import RoutingPolicySpec
from llmrouter.sim.model import EngineModel
from llmrouter.tuning import options as tune_options
from llmrouter.tuning.judgement import SHOWN, judge
from llmrouter.tuning.parameters import compiled_policy, numbers, parameters, policy_at, steps_of
from llmrouter.tuning.written import manifest

if TYPE_CHECKING:
    from llmrouter.tuning.judgement import Figures

CRD = Path(__file__).resolve().parents[2] / "crds" / "llmrouter.dev_routingpolicies.yaml"

ROUTER = """
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: mine}
spec: {type: WorkloadImpact, objective: {preset: E2E, stallWeight: 0.9}, queue: {maxDepth: 77}}
---
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {name: r}
spec:
  models: [{name: a}]
  policyRef: {name: mine}
  router: {replicas: 1}
  predictor: {type: Constant, constantTokens: 100}
  pools:
    - {name: fast, endpoints: ["h:1", "h:2"], profile: {name: h100-mix}}
    - {name: slow, endpoints: ["h:3"], profile: {name: llama-3.1-8b-rtx4090}}
"""


def trace(path: Path, count: int = 1_500, *, rate_rps: float = 20.0, prompt: int = 600) -> Path:
    rng = np.random.default_rng(5)
    arrivals_s = np.cumsum(rng.exponential(1.0 / rate_rps, count))
    prompts = 1 + rng.poisson(prompt, count)
    outputs = 1 + rng.poisson(80, count)
    rows = [f"{a:.4f},{p},{o}" for a, p, o in zip(arrivals_s, prompts, outputs, strict=True)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return path


def lines(error: str) -> list[str]:
    """What is said besides progress, which ends in a time."""
    return [line for line in error.splitlines() if "left:" not in line]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--cell nowhere", "no cell 'nowhere'; there is: paper-v100"),
        ("--cell h100-mix --budget 0", "--budget must be above 0 and at most 600 minutes, not 0"),
        ("--cell h100-mix --budget nan", "--budget must be above 0 and at most 600 minutes, not nan"),
        ("--cell h100-mix --generations 0", "--generations must be 1 to 200, not 0"),
        ("--cell h100-mix --windows 1", "--windows must be 2 to 100, not 1"),
        ("--cell h100-mix --seed -1", "--seed must be 0 to 2147483647, not -1"),
        ("--cell h100-mix --jobs 0", "--jobs must be 1 to 256, not 0"),
        ("--cell h100-mix --load nan", "--load must be positive and finite, not nan"),
        ("--cell h100-mix --load 11", "--load must be at most 10, not 11"),
        ("--cell h100-mix --rate inf", "--rate must be positive and finite, not inf"),
        ("--cell h100-mix --requests 10", "--requests must be 200 to 1000000, not 10"),
        ("--cell h100-mix --held-out 1", "--held-out must be 0.1 to 0.9, not 1"),
        ("--cell h100-mix --instances 1", "one engine leaves no choice"),
        ("--cell h100-mix --profile none", "no profile 'none'"),
        ("--cell h100-mix --format csv", "say how to read --trace, which is not given"),
        ("--cell h100-mix --model a", "there are none"),
        ("--trace none.csv", "none.csv"),
        ("--trace empty.csv", "empty.csv"),
        ("--trace short.csv", "200 requests are too few to tune on: it takes 1,000"),
        ("--trace nan.csv", "nan.csv, line 3: output_tokens"),
        ("--cell h100-mix --config none.yaml", "none.yaml"),
        ("--trace good.csv --config router.yaml --profile h100-mix", "--config names the engines"),
        ("--trace good.csv --update router.txt", "--update router.txt"),
        ("--trace good.csv --update other.yaml", "type LMetric has no numbers to tune"),
        ("--cell h100-mix --out folder", "no file of an existing folder"),
        ("--cell h100-mix --out no/where.yaml", "no file of an existing folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trace(tmp_path / "good.csv")
    trace(tmp_path / "short.csv", 200)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "nan.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,1,nan\n")
    (tmp_path / "router.yaml").write_text(ROUTER)
    (tmp_path / "router.txt").write_text("a: [")
    (tmp_path / "other.yaml").write_text(
        "{apiVersion: llmrouter.dev/v1alpha1, kind: RoutingPolicy, metadata: {name: p}, spec: {type: LMetric}}"
    )
    (tmp_path / "folder").mkdir()
    given = words.split() if "--out" in words else [*words.split(), "--out", "policy.yaml"]
    assert cli.main(["tune", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "policy.yaml").exists()


@pytest.mark.parametrize("wrong", [[], ["--cell", "h100-mix"], ["--trace", "a", "--cell", "b", "--out", "c"]])
def test_what_argparse_refuses_is_exit_status_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["tune", *wrong])
    assert caught.value.code == 2


def parsed(tmp_path: Path, *words: str) -> tune_options.Options:
    file = trace(tmp_path / "good.csv")
    return tune_options.parse(["--trace", str(file), "--out", str(tmp_path / "p.yaml"), *words])


def test_the_policy_of_the_file_is_what_is_improved_on(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(ROUTER)
    options = parsed(tmp_path, "--config", str(tmp_path / "router.yaml"))
    assert (options.name, options.plan.objective) == ("mine", "E2E")
    assert options.current.objective.stall_weight == 0.9
    assert options.start.objective.stall_weight == PRESETS["E2E"].stall  # the search begins with the preset …
    assert options.start.queue.max_depth == 77  # … and leaves the rest as it is
    assert [name for name, _ in options.others] == ["SLO", "Balanced", "E2E"]
    for _, policy in options.others:
        assert None not in [getattr(policy.objective, f"{name}_weight") for name in PRESETS["E2E"].as_mapping()]
    assert options.scene.constant_tokens == 100
    assert len(options.scene.setup.engines) == 3


def test_an_update_begins_with_the_file_s_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(ROUTER)
    options = parsed(tmp_path, "--update", str(tmp_path / "router.yaml"), "--objective", "SLO", "--name", "other")
    assert options.plan.is_update
    assert options.others == ()
    assert options.start.objective.stall_weight == 0.9
    assert (options.name, options.start.objective.preset) == ("other", "SLO")


def test_an_update_for_another_objective_keeps_the_weights_in_force(tmp_path: Path) -> None:
    """They are the old preset's where the file names none."""
    file = tmp_path / "policy.yaml"
    file.write_text(ROUTER.split("---", maxsplit=1)[0].replace(", stallWeight: 0.9", ""))
    options = parsed(tmp_path, "--update", str(file), "--objective", "SLO")
    assert compiled_policy(options.start).weights == PRESETS["E2E"]
    assert options.start.objective.preset == "SLO"


def test_each_part_of_a_trace_has_its_own_rate_unless_one_is_asked_for(tmp_path: Path) -> None:
    scene = parsed(tmp_path).scene
    assert scene.training.rate_rps == pytest.approx(20, rel=0.1)
    assert scene.training.rate_rps != scene.held_out.rate_rps
    assert (scene.training.requests, scene.held_out.requests, scene.held_out.window_share) == (1_050, 450, 1.0)
    assert len(scene.history) == 1_050  # nothing that is held out
    scene = parsed(tmp_path, "--rate", "7", "--requests", "200").scene
    assert (scene.training.rate_rps, scene.held_out.rate_rps) == (7, 7)
    assert scene.held_out.window_share == pytest.approx(200 / 450)


# what is written


def check(schema: dict[str, Any], value: object, path: str = "spec") -> None:
    """What an API server checks of a value: types, bounds, enumerations, names of fields."""
    kinds: dict[str, Any] = {
        "object": dict,
        "string": str,
        "boolean": bool,
        "array": list,
        "integer": int,
        "number": (int, float),
    }
    assert isinstance(value, kinds[schema["type"]]), path
    if isinstance(value, dict):
        assert set(value) <= set(schema["properties"]), path
        assert set(schema.get("required", [])) <= set(value), path
        for name, part in value.items():
            check(schema["properties"][name], part, f"{path}.{name}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), path
    if "enum" in schema:
        assert value in schema["enum"], path


@pytest.mark.parametrize("policy_type", ["WorkloadImpact", "Onnx"])
@pytest.mark.parametrize("steps", [-9.0, 0.0, 0.7, 9.0])
def test_the_manifest_is_a_resource_that_the_cluster_takes(policy_type: str, steps: float) -> None:
    model = {"model": {"builtin": "marginal-cost"}} if policy_type == "Onnx" else {}
    policy = RoutingPolicySpec.model_validate({"type": policy_type, "queue": {"maxDepth": 5}, **model})
    searched = parameters(policy, [EngineModel(PROFILES[name]) for name in ("h100-mix", "paper-v100")])
    tuned = policy_at(policy, searched, steps_of(policy, searched) + steps)
    same: list[Figures] = [{**dict.fromkeys(SHOWN, 1.0)}] * 2
    text = manifest(
        "by-cost", tuned, searched, about=["llmrouter tune: how\nit came"], rows=judge("E2E", same, same).rows
    )
    resource = yaml.safe_load(text)
    assert (resource["kind"], resource["metadata"]["name"]) == ("RoutingPolicy", "by-cost")
    crd = yaml.safe_load(CRD.read_text())
    (version,) = (
        one for one in crd["spec"]["versions"] if f"{crd['spec']['group']}/{one['name']}" == resource["apiVersion"]
    )
    check(version["schema"]["openAPIV3Schema"]["properties"]["spec"], resource["spec"])
    assert parse_policy(text) == ("by-cost", tuned)
    written = {f"{name}.{key}" for name in ("objective", "hold") for key in resource["spec"][name]}
    assert written >= set(numbers(tuned))
    assert all(line.startswith("#") for line in text.splitlines()[: text.count("\n#")])


# the whole of it

SMALL = ("--generations", "1", "--windows", "3", "--requests", "200", "--predictor", "task-mean")


@pytest.mark.timeout(900)  # the first simulation of a changed kernel compiles it
def test_a_policy_that_is_plainly_bad_is_improved_and_the_same_whoever_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the reverse of what is right: the request's own costs do not count, crowding is sought."""
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        ROUTER.replace(
            "{preset: E2E, stallWeight: 0.9}",
            "{preset: E2E, waitWeight: 0, decodeWeight: 0, "
            "stallWeight: 0, slowdownWeight: 0, coalesceWeight: 0, overflowWeight: 0, spreadWeight: 0}",
        )
    )
    file = trace(tmp_path / "good.csv", 3_000, rate_rps=16.0)
    written = []
    for jobs in ("1", "2"):
        out = tmp_path / f"policy-{jobs}.yaml"
        words = ["--trace", str(file), "--config", str(bad), "--jobs", jobs, "--out", str(out), "--json", *SMALL]
        assert cli.main(["tune", *words]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["accepted"]
        written.append((result["tuned"], result["figures"], out.read_text().split("apiVersion")[1]))
    assert written[0] == written[1]
    name, policy = parse_policy((tmp_path / "policy-1.yaml").read_text())
    assert name == "mine"
    assert policy.queue.max_depth == 77


@pytest.mark.timeout(900)
def test_where_nothing_is_better_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So few requests that all engines are idle: no number makes a difference."""
    file = trace(tmp_path / "idle.csv", rate_rps=0.05)
    out = tmp_path / "policy.yaml"
    assert cli.main(["tune", "--trace", str(file), "--jobs", "1", "--out", str(out), *SMALL]) == 1
    assert "kept the current policy" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("rate_rps", "prompt"), [(2_000.0, 40_000), (10.0, 9_000_000)])
def test_traffic_that_the_engines_cannot_hold_is_refused(
    rate_rps: float, prompt: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trace(tmp_path / "much.csv", rate_rps=rate_rps, prompt=prompt)
    words = ["--trace", str(file), "--jobs", "1", "--out", str(tmp_path / "p.yaml"), "--generations", "1"]
    assert cli.main(["tune", *words]) == 2
    said = lines(capsys.readouterr().err)
    assert len(said) == 1
    assert "cannot hold this traffic" in said[0] or "say nothing of" in said[0]
