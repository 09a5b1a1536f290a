"""Learned agents in the paper's own cell, beside the rules: what learning adds, over training seeds and test seeds.

    .venv/bin/python -m bench.paper.agents [--training-seeds N] [--only KEY …] [--final] [--json FILE]

Trains what is not in the folder of ``--agents`` yet (the commands are `llmrouter train`'s), then plays every agent and
every rule on the same test requests: seeds 1,100 to 1,119 of the selection block while working, 9,000 to 9,019 of the
final block with ``--final``, whose opening is recorded. Agents never meet these while they learn: they train on seeds 0
to 999 and choose their checkpoint on 1,000 to 1,007.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from llmrouter.domain import ObjectiveWeights
from llmrouter.errors import InvalidInputError
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study.progress import progress
from llmrouter.study.seeds import FINAL, SELECTION, ledger_path, record_opening
from llmrouter.study.statistics import half_width
from llmrouter.training.agents import ddqn_literal, ddqn_shielded, distil, evolution, rollout
from llmrouter.training.agents.environment import RESERVE_FRACTION, TICK_S, Decider, Environment
from llmrouter.training.agents.judged import ROUND_ROBIN, ends_s, makespan_s, mean_e2e_s, round_robin
from llmrouter.training.agents.keeping import keep, read_agent
from llmrouter.training.agents.network import HOLD_SHAPE, SCORE_SHAPE, paper_shape
from llmrouter.training.agents.rewards import Reward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.training.agents.learning import Learned

PACED, EPOCHS = Environment(tick_s=TICK_S), Environment()
EIGHT = Environment(instances=8, requests=4_000, rate_rps=40.0)


def watermark(blocks: int) -> Environment:
    """The cell on engines whose admissions leave so many of their 1,200 KV blocks free, not 12."""
    engine = EPOCHS.source.engine
    fraction = blocks * engine.profile.block_tokens / engine.profile.kv_tokens
    return replace(EPOCHS, source=replace(EPOCHS.source, engine=replace(engine, watermark_fraction=fraction)))


NO_WATERMARK = watermark(0)
ELSEWHERE = {"8 instances": EIGHT, "6 blocks free": watermark(6), "no watermark": NO_WATERMARK}
"""Where agents of the cell are played without training there."""

TEST_SEEDS = 20
MOST_SEEDS = 100
SPEED_EPISODES = 40
FIRST_DEVELOPMENT_SEED = SELECTION.first + 100
FIGURES = ("makespan_pct", "e2e_pct", "makespan_s", "e2e_s", "ttft_s", "wait_s", "preemptions", "unfinished")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to learn: its key, what the table calls it, and how one agent is trained."""

    key: str
    title: str
    environment: Environment
    train: Callable[[int, Path], Learned]
    seeds: int
    """Training seeds at most, whatever is asked for."""


def _literal(reward: Reward) -> Callable[[int, Path], Learned]:
    return lambda seed, _agents: ddqn_literal.train(seed=seed, reward=reward, episodes=LITERAL_EPISODES)


def _shielded(reward: Reward) -> Callable[[int, Path], Learned]:
    return lambda seed, _agents: ddqn_shielded.train(seed=seed, reward=reward, episodes=SHIELDED_EPISODES)


LITERAL_EPISODES, SHIELDED_EPISODES, EVOLUTION_EPISODES, DISTIL_EPISODES = 30, 30, 2_400, 30
RECIPES = (
    *(
        Recipe(f"ddqn-literal-{one}", f"Double DQN, literally, {one}", PACED, _literal(one), MOST_SEEDS)
        for one in (Reward.BASELINE, Reward.AWARE, Reward.GUIDED)
    ),
    *(
        Recipe(f"ddqn-shielded-{one}", f"Double DQN, shielded, {one}", EPOCHS, _shielded(one), MOST_SEEDS)
        for one in (Reward.BASELINE, Reward.AWARE, Reward.GUIDED)
    ),
    Recipe("ddqn-shielded-marginal", "Double DQN, shielded, marginal", EPOCHS, _shielded(Reward.MARGINAL), MOST_SEEDS),
    Recipe(
        "evolution",
        "evolution strategies, shared network",
        EPOCHS,
        lambda seed, _agents: evolution.train(seed=seed, episodes=EVOLUTION_EPISODES),
        MOST_SEEDS,
    ),
    Recipe(
        "distil",
        "the same, distilled into 27-64-64-5",
        EPOCHS,
        lambda seed, agents: distil.train(
            read_agent(agents / f"evolution-{seed}"), seed=seed, episodes=DISTIL_EPISODES
        ),
        MOST_SEEDS,
    ),
    Recipe(
        "evolution-no-watermark",
        "no watermark: evolution, trained there",
        NO_WATERMARK,
        lambda seed, _agents: evolution.train(seed=seed, episodes=EVOLUTION_EPISODES, environment=NO_WATERMARK),
        1,
    ),
)


def free(rule: Rule) -> CompiledPolicy:
    """A rule that never waits."""
    return CompiledPolicy(rule=rule, max_requests=1_000_000_000)


def gated(rule: Rule, imposed: float = 0.25) -> CompiledPolicy:
    """A rule behind the KV gate."""
    return CompiledPolicy(
        rule=rule,
        weights=ObjectiveWeights(stall=imposed, slowdown=imposed).in_order,
        max_requests=None,
        kv_fraction=1.0,
        decode_reserve_fraction=RESERVE_FRACTION,
    )


GATED: tuple[tuple[str, CompiledPolicy | Decider], ...] = (
    ("KV gate + random", gated(Rule.RANDOM)),
    ("KV gate + cost + coalescing", gated(Rule.MARGINAL_COST)),
    ("KV gate + cost + batch-hold, 6 or 1 s", Decider(rollout.BATCH_HOLD, batch=6, batch_wait_s=1.0)),
)
RULES: tuple[tuple[str, Environment, CompiledPolicy | Decider], ...] = (
    ("RoundRobin, every 20 ms", PACED, ROUND_ROBIN),
    ("JSQ, every 20 ms", PACED, free(Rule.PAPER_JSQ)),
    *((f"{title}, every 20 ms", PACED, route) for title, route in GATED),
    *((title, EPOCHS, route) for title, route in GATED),
)


@dataclass(frozen=True, slots=True)
class Played:
    """A route on the test seeds: each of ``FIGURES`` of every seed, for every agent of the route (one for a rule)."""

    title: str
    agents: list[dict[str, list[float]]]

    def means(self, figure: str) -> list[float]:
        """Of each agent, over the test seeds."""
        return [float(np.mean(one[figure])) for one in self.agents]

    def interval(self, figure: str) -> float | None:
        """Half-width of the 95 % interval over the test seeds, of the median agent."""
        order = np.argsort(self.means(figure), kind="stable")
        return half_width(self.agents[int(order[(len(order) - 1) // 2])][figure])


def figures(outcomes: Outcomes, base: Outcomes) -> dict[str, float]:
    """Of an episode, against round-robin on the same requests; what did not finish counts up to the cut."""
    ends = ends_s(outcomes)
    arrived_s = outcomes.workload.arrived_at_s
    return {
        "makespan_pct": 100.0 * (makespan_s(outcomes) / makespan_s(base) - 1.0),
        "e2e_pct": 100.0 * (mean_e2e_s(outcomes) / mean_e2e_s(base) - 1.0),
        "makespan_s": makespan_s(outcomes),
        "e2e_s": mean_e2e_s(outcomes),
        "ttft_s": float((np.where(outcomes.finished, outcomes.first_token_at_s, ends) - arrived_s).mean()),
        "wait_s": float(
            (np.where(np.isnan(outcomes.dispatched_at_s), ends, outcomes.dispatched_at_s) - arrived_s).mean()
        ),
        "preemptions": float(outcomes.preemptions.sum()),
        "unfinished": float((~outcomes.finished).sum()),
    }


def play(environment: Environment, route: CompiledPolicy | Decider, seed: int) -> Outcomes:
    """One episode."""
    if isinstance(route, Decider):
        return environment.play(route, seed).outcomes
    return simulate(environment.setup, environment.workload(seed), route, seed=seed)


def played(
    title: str,
    environment: Environment,
    routes: Sequence[CompiledPolicy | Decider],
    seeds: Sequence[int],
) -> Played:
    """A route, or the agents of one recipe, on the test seeds."""
    agents = []
    for route in routes:
        rows = [figures(play(environment, route, seed), round_robin(environment, seed)) for seed in seeds]
        agents.append({name: [row[name] for row in rows] for name in FIGURES})
    return Played(title, agents)


def trained(recipe: Recipe, count: int, agents: Path) -> list[Learned]:
    """The agents of a recipe, trained where they are not kept yet."""
    made = []
    seeds = range(min(count, recipe.seeds))
    with progress(recipe.title, len(seeds), unit="agents") as advance:
        for seed in seeds:
            folder = agents / f"{recipe.key}-{seed}"
            if not (folder / "agent.npz").is_file():
                keep(folder, recipe.train(seed, agents), f"python -m bench.paper.agents --only {recipe.key}")
            made.append(read_agent(folder))
            advance(1)
    return made


def run(recipes: Sequence[Recipe], count: int, agents: Path, seeds: Sequence[int]) -> list[Played]:
    """Every rule and every agent on the test seeds."""
    learned = {recipe.key: trained(recipe, count, agents) for recipe in recipes}
    found = []
    jobs: list[tuple[str, Environment, list[CompiledPolicy | Decider]]] = [
        (title, environment, [route]) for title, environment, route in RULES
    ]
    jobs += [(one.title, one.environment, [agent.decider for agent in learned[one.key]]) for one in recipes]
    for key, title in (("ddqn-shielded-marginal", "Double DQN, shielded, marginal"), ("evolution", "evolution")):
        if key in learned:
            jobs.append((f"{title}, every 20 ms", PACED, [agent.decider for agent in learned[key]]))
    for place, environment in ELSEWHERE.items():
        jobs += [(f"{place}: {title}", environment, [route]) for title, route in GATED]
        if "evolution" in learned:
            agents_of: list[CompiledPolicy | Decider] = [one.decider for one in learned["evolution"]]
            jobs.append((f"{place}: evolution, not retrained", environment, agents_of))
    with progress("test", len(jobs), unit="routes") as advance:
        for title, environment, routes in jobs:
            found.append(played(title, environment, routes, seeds))
            advance(1)
    return found


def table_of(found: Sequence[Played]) -> Table:
    """A row for each route: of agents the median over training seeds and the worst."""
    table = Table(title="four V100, 2,000 requests at 20/s; change against RoundRobin, %: median (worst) of the agents")
    table.add_column("route")
    for heading in ("agents", "makespan %", "mean E2E %", "mean TTFT s", "router wait s", "preemptions", "unfinished"):
        table.add_column(heading, justify="right")
    for one in found:
        table.add_row(
            one.title,
            str(len(one.agents)),
            *(_changes(one, name) for name in ("makespan_pct", "e2e_pct")),
            *(f"{float(np.median(one.means(name))):.2f}" for name in ("ttft_s", "wait_s")),
            f"{float(np.median(one.means('preemptions'))):.0f}",
            f"{float(np.median(one.means('unfinished'))):g}",
        )
    return table


def _changes(one: Played, figure: str) -> str:
    means = one.means(figure)
    half = one.interval(figure)
    said = f"{float(np.median(means)):+.1f}" + ("" if half is None else f" ± {half:.1f}")
    return said if len(means) == 1 else f"{said} ({max(means):+.1f})"


def beyond_table(found: Sequence[Played]) -> Table:
    """What learning adds to each gated rule at the same moments of decision: paired changes of mean E2E."""
    table = Table(
        title="mean E2E against the rule on the same requests, %: best, median, worst agent; how many are better"
    )
    table.add_column("agents of")
    rules = [one for one in found if one.title in dict(GATED)]
    for rule in rules:
        table.add_column(rule.title, justify="right")
    for one in found:
        if one.title in {recipe.title for recipe in RECIPES if recipe.environment == EPOCHS}:
            table.add_row(one.title, *(_beyond(one, np.array(rule.agents[0]["e2e_s"])) for rule in rules))
    return table


def _beyond(one: Played, base_s: NDArray[np.float64]) -> str:
    """Mean paired changes of the best, the median and the worst agent, and how many are below 0."""
    changes = [100.0 * (np.array(agent["e2e_s"]) / base_s - 1.0) for agent in one.agents]
    changes.sort(key=lambda change: float(change.mean()))
    picked = (changes[0], changes[(len(changes) - 1) // 2], changes[-1])
    said = ", ".join(f"{change.mean():+.1f} ± {half_width(change.tolist()) or 0.0:.1f}" for change in picked)
    return f"{said}; {sum(change.mean() < 0 for change in changes)} of {len(changes)}"


def speed(console: Console) -> None:
    """Episodes and decisions per CPU second, of networks that nobody trained."""
    rng = np.random.default_rng(0)
    shared_W = np.concatenate([SCORE_SHAPE.first_weights(rng), HOLD_SHAPE.first_weights(rng)])
    paper_W = paper_shape().first_weights(rng)
    for title, environment, decider in (
        ("KV gate + cost + batch-hold", EPOCHS, Decider(rollout.BATCH_HOLD)),
        ("27-64-64-5 at epochs", EPOCHS, Decider(rollout.SHIELDED, paper_W, epsilon=1.0)),
        ("27-64-64-5 every 20 ms", PACED, Decider(rollout.PER_TICK, paper_W, epsilon=1.0)),
        ("shared network at epochs", EPOCHS, Decider(rollout.SHARED, shared_W)),
    ):
        environment.play(decider, 0)
        began_s = time.process_time()
        decisions = sum(environment.play(decider, seed).decisions for seed in range(SPEED_EPISODES))
        took_s = time.process_time() - began_s
        console.print(f"{title}: {SPEED_EPISODES / took_s:.0f} episodes/s, {decisions / took_s:,.0f} decisions/s")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper.agents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--training-seeds", type=int, default=10, help="agents of each recipe (default: %(default)s, of some fewer)")
    add("--only", nargs="+", metavar="KEY", choices=[one.key for one in RECIPES], help="recipes (default: all)")
    add("--test-seeds", type=int, default=TEST_SEEDS, help="episodes that each is played on (default: %(default)s)")
    add("--final", action="store_true", help="play on the final block, and record its opening")
    add("--speed", action="store_true", help="print how fast agents decide, and end")
    add("--agents", type=Path, default=Path("build/agents"), help="folder of the agents (default: %(default)s)")
    add("--json", type=Path, default=Path("build/bench/paper_agents.json"), help="file (default: %(default)s)")
    return parser.parse_args(given)


def check(options: argparse.Namespace) -> None:
    """Raises InvalidInputError where a bound is broken."""
    for name in ("training_seeds", "test_seeds"):
        if not 1 <= getattr(options, name) <= MOST_SEEDS:
            raise InvalidInputError(
                f"--{name.replace('_', '-')} must be 1 to {MOST_SEEDS}, not {getattr(options, name)}"
            )


def main(given: Sequence[str] | None = None) -> int:
    """Exit status 2, with one line, on bad input."""
    options = arguments(given)
    command = " ".join(("python -m bench.paper.agents", *(sys.argv[1:] if given is None else given)))
    try:
        check(options)
        if options.speed:
            speed(Console())
            return 0
        recipes = [one for one in RECIPES if options.only is None or one.key in options.only]
        first = FINAL.first if options.final else FIRST_DEVELOPMENT_SEED
        seeds = range(first, first + options.test_seeds)
        if options.final:
            record_opening(ledger_path(options.json.parent), {"command": command, "first": first, "seeds": len(seeds)})
        found = run(recipes, options.training_seeds, options.agents, seeds)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 190)
    console.print(table_of(found))
    console.print(beyond_table(found))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"route": one.title, "agents": one.agents} for one in found]
    options.json.write_text(json.dumps({"command": command, "seeds": list(seeds), "rows": rows}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
