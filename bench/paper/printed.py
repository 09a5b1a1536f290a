"""What arXiv 2408.13510 v2 prints, by cell: seconds, and changes against its round-robin in percent."""

from __future__ import annotations

LEARNED = ("Baseline RL", "Workload-aware RL", "Workload-guided RL")
"""The paper's three learned agents; none of them is run here."""

V100_ROUND_ROBIN_S = (168.0, 173.0)
"""Round-robin's time for 2,000 requests follows from gains that are printed in seconds and in percent (19.18 s are
11.43 %, 13.50 s are 7.79 %, 7.53 s are 4.35 %)."""

V100_MAKESPAN_PCT = {
    "JSQ": -0.46,
    "MaxCapacity": -2.60,
    "MinMin": -1.50,
    "Baseline RL": -4.35,
    "Workload-aware RL": -7.79,
    "Workload-guided RL": -11.43,
}

V100_WAIT_S = {"Baseline RL": 0.59, "Workload-aware RL": 4.41, "Workload-guided RL": 2.05}
"""Mean time held at the router."""

V100_8_MAKESPAN_PCT = {"Baseline RL": -5.84, "Workload-aware RL": -6.64, "Workload-guided RL": -11.62}

A100_MAKESPAN_S = {
    "RoundRobin": 248.41,
    "Baseline RL": 240.58,
    "Workload-aware RL": 231.66,
    "Workload-guided RL": 221.80,
}

A100_TOKENS_PER_S = {"prompt": 715.0, "output": 894.0}
"""Round-robin's throughput in the figure that goes with the table; of all instances or of one, it does not say."""

A100_CHUNKED_MAKESPAN_S = {
    "RoundRobin": 247.30,
    "Baseline RL": 240.68,
    "Workload-aware RL": 231.12,
    "Workload-guided RL": 220.93,
}

PRODUCTION_MAKESPAN_S = {
    "RoundRobin": 1005.31,
    "Baseline RL": 982.38,
    "Workload-aware RL": 961.17,
    "Workload-guided RL": 926.49,
}

MIXING_ALONE_S = 17.0
MIXING_JOINED_S = 31.0
MIXING_STEP_S = {0: 34.2e-3, 6_000: 37.5e-3}
"""Step time by context tokens in the batch, read off a figure; the number of sequences is not printed."""

SCENARIOS = ("LH, HL random", "all four random", "LH, then HL", "HL, then LH")
"""Of the two-instance study: L light, H heavy; the first letter is the prompt, the second the decode."""

TWO_INSTANCES_S: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "FirstComeFirstServed": {
        "Dedicated": (704.5, 648.66, 566.25, 588.15),
        "RoundRobin": (607.45, 572.16, 424.80, 440.82),
        "DecodeBalancer": (605.65, 573.17, 424.82, 440.81),
    },
    "BinPacking": {
        "Dedicated": (704.5, 644.75, 566.25, 588.15),
        "RoundRobin": (581.5, 559.3, 424.8, 440.68),
        "DecodeBalancer": (595.82, 555.4, 424.82, 440.81),
    },
    "LeastWorkLeft": {
        "Dedicated": (704.5, 641.81, 566.25, 588.15),
        "RoundRobin": (585.14, 554.00, 424.64, 440.82),
        "DecodeBalancer": (596.95, 559.97, 424.66, 440.81),
    },
}
"""Total end-to-end latency by in-engine order, route and scenario."""


def percent_of(seconds: dict[str, float]) -> dict[str, float]:
    """Changes against round-robin of a table that is printed in seconds."""
    base_s = seconds["RoundRobin"]
    return {name: 100.0 * (value / base_s - 1.0) for name, value in seconds.items() if name != "RoundRobin"}
