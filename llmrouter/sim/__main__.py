"""``python -m llmrouter.sim``: compiles the kernel, so that whoever simulates next need not wait."""

from __future__ import annotations

import sys

from llmrouter.profiles import PROFILES
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup
from llmrouter.sim.workload import Workload


def main() -> int:
    """One request through one engine: what is not compiled yet is compiled for it."""
    print("compiling the simulator, about half a minute where its sources changed", file=sys.stderr)
    setup = Setup(engines=(EngineModel(PROFILES["h100-mix"]),))
    outcomes = simulate(setup, Workload.of([0.0], [8], [2]), CompiledPolicy(rule=Rule.ROUND_ROBIN))
    return 0 if outcomes.finished.all() else 1


if __name__ == "__main__":
    sys.exit(main())
