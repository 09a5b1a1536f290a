"""What was measured of one arm of a trial."""

from __future__ import annotations

from llmrouter.rollout.arm_stats import ArmStats


def arm(times: float, count: int) -> ArmStats:
    """So many requests, each of which took so many times as long as one takes, give or take some noise."""
    stats = ArmStats()
    for place in range(count):
        noise = 1 + 0.1 * (place % 5)
        stats.began()
        stats.first_token(0.1 * times * noise, prompt_tokens=100)
        stats.ended_well(e2e_s=times * noise, tpot_s=0.01 * times * noise, output_tokens=100)
    return stats
