from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmrouter.profiles import LLAMA_31_8B_RTX_4090, LLAMA_31_8B_RTX_PRO_6000
from llmrouter.sim.capacity import MAX_LATE_TTFT_S, ROUND_ROBIN, late_ttft_s
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.testbed.comparison import CAPACITY_RPS
from llmrouter.testbed.trace import azure_2023, workload

ROOT = Path(__file__).resolve().parents[2]
CLOCK_AND_CHANCE = ("time", "random", "asyncio")
PURE = (
    *("llmrouter.domain", "llmrouter.errors", "llmrouter.routing.policies", "llmrouter.routing.rules"),
    *(f"llmrouter.sim.{name}" for name in ("arrays", "capacity", "engine", "model", "outcomes", "run", "setup")),
    *(f"llmrouter.sim.kernel.{name}" for name in ("admission", "decisions", "events", "ledger", "lists", "prefixes")),
    *(f"llmrouter.sim.kernel.{name}" for name in ("records", "routers", "steps", "world")),
)
TRUE_LENGTHS = {"output", "output_tokens"}
"""What the kernel's records and a workload call true output lengths."""

READERS_OF_TRUE_LENGTHS = {
    "admission._next_waiting": "an engine that orders its queue by true work, which is a bound",
    "admission._worst_case_fits": "an engine that admits by the worst case",
    "admission._left": "as above",
    "ledger.generated": "tokens produced by now, from the step in which the answer ends",
    "routers.holds": "whether an engine refuses what its KV can never hold",
    "steps._end_prefill": "an answer of one token ends with its prefill",
    "steps._start_decode": "the step in which the answer ends",
    "steps._stop_decode": "tokens produced by now",
}


def test_import_contracts_are_kept() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}"}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_hold_neither_clock_nor_chance(name: str) -> None:
    module = importlib.import_module(name)
    assert [word for word in CLOCK_AND_CHANCE if hasattr(module, word)] == []


def reading(folder: str, names: set[str]) -> set[str]:
    """Functions of the modules in a folder that read an attribute of one of these names, as ``module.function``."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                read = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
                found |= {f"{path.stem}.{function.name}"} if read & names else set()
    return found


def test_only_engines_know_true_output_lengths() -> None:
    """Oracles stay in the engine: in the simulator the functions that are named here read them, in routing nobody."""
    assert reading("llmrouter/sim/kernel", TRUE_LENGTHS) == set(READERS_OF_TRUE_LENGTHS)
    assert reading("llmrouter/routing", TRUE_LENGTHS) == set()
    assert reading("llmrouter/sim", {"output_tokens"}) == {
        *("arrays._sequences", "outcomes.tpot_s"),
        "engine.add",  # an engine by itself
    }
    where_said = (
        *("reports.", "usage.", "exchange.", "answers.", "dispatch.", "openai_request."),
        "arms.",
        "decision_log.",
    )
    said = {name for name in reading("router_grpc", TRUE_LENGTHS) if not name.startswith(where_said)}
    assert said == set()  # what has come is read where clients report it, or engines say it in their answers
    assert not {name for name in reading("llmrouter", TRUE_LENGTHS) if name.endswith((".decide", "._rank"))}


def test_the_operators_folder_is_a_place_and_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it
@pytest.mark.parametrize(("fraction", "sustained"), [(0.97, True), (1.03, False)])
def test_the_demos_capacity_is_what_the_simulator_says(*, fraction: float, sustained: bool) -> None:
    profiles = [LLAMA_31_8B_RTX_4090] * 4 + [LLAMA_31_8B_RTX_PRO_6000] * 4
    load = workload(azure_2023().scaled_to(fraction * CAPACITY_RPS))
    late_s = late_ttft_s(simulate(Setup(engines=tuple(map(EngineModel, profiles))), load, ROUND_ROBIN))
    assert (late_s < MAX_LATE_TTFT_S) == sustained
