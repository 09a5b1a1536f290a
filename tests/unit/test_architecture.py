from __future__ import annotations

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
PURE = ("llmrouter.domain", "llmrouter.errors", "llmrouter.routing.policies", "llmrouter.sim.engine")


def test_import_contracts_are_kept() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'operator'}"}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PURE)
def test_pure_rooms_hold_neither_clock_nor_chance(name: str) -> None:
    module = importlib.import_module(name)
    assert [word for word in CLOCK_AND_CHANCE if hasattr(module, word)] == []


def test_the_operators_folder_is_a_place_and_no_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize(("fraction", "sustained"), [(0.97, True), (1.03, False)])
def test_the_demos_capacity_is_what_the_simulator_says(*, fraction: float, sustained: bool) -> None:
    profiles = [LLAMA_31_8B_RTX_4090] * 4 + [LLAMA_31_8B_RTX_PRO_6000] * 4
    load = workload(azure_2023().scaled_to(fraction * CAPACITY_RPS))
    late_s = late_ttft_s(simulate(Setup(engines=tuple(map(EngineModel, profiles))), load, ROUND_ROBIN))
    assert (late_s < MAX_LATE_TTFT_S) == sustained
