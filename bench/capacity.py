"""Capacity C of the demo's pools on the packaged trace, and what 0.85 C asks of the machine.

    python bench/capacity.py [--json FILE]

C is the highest rate of the whole excerpt, its arrivals compressed, at which round-robin over 4 x rtx4090 and
4 x rtx-pro-6000 keeps the mean TTFT of the last quarter below 1 s. It depends a little on the order of the turns:

    order of instances   C req/s   0.85 C   output tokens/s there
    pool by pool           23.12    19.66                   2,346
    in turn                23.83    20.25                   2,418
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from llmrouter.profiles import LLAMA_31_8B_RTX_4090, LLAMA_31_8B_RTX_PRO_6000
from llmrouter.sim.capacity import ROUND_ROBIN, capacity_rps
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.testbed.trace import azure_2023, workload

LOAD = 0.85
ORDERS = {
    "pool by pool": [LLAMA_31_8B_RTX_4090] * 4 + [LLAMA_31_8B_RTX_PRO_6000] * 4,
    "in turn": [LLAMA_31_8B_RTX_4090, LLAMA_31_8B_RTX_PRO_6000] * 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    trace = azure_2023()
    rows = []
    for order, profiles in ORDERS.items():
        setup = Setup(engines=tuple(map(EngineModel, profiles)))
        found = capacity_rps(setup, lambda rate: workload(trace.scaled_to(rate)), start_rps=20, tolerance=0.005)
        outcomes = simulate(setup, workload(trace.scaled_to(LOAD * found)), ROUND_ROBIN)
        rows.append(
            {
                "order_of_instances": order,
                "capacity_rps": round(found, 2),
                "rate_rps": round(LOAD * found, 2),
                "output_tokens_per_s": round(LOAD * found * trace.mean_output_tokens),
                "prompt_tokens_per_s": round(LOAD * found * trace.mean_prompt_tokens),
                "ttft_p50_s": round(float(np.median(outcomes.ttft_s)), 3),
                "ttft_p99_s": round(float(np.percentile(outcomes.ttft_s, 99)), 3),
                "e2e_mean_s": round(float(outcomes.e2e_s.mean()), 3),
            }
        )
    text = json.dumps({"command": " ".join(sys.argv), "load": LOAD, "pools": rows}, indent=2)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
