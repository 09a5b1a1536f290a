"""``llmrouter train``: a learned routing agent, from a seed to an ONNX file.

    llmrouter train --learner learned --seed 0 --out build/agents/learned-0
    llmrouter train --learner ddqn-shielded --reward marginal --seed 0 --out build/agents/shielded-0

``learned`` is the product's policy, for any pool; the others learn in the setting of arXiv 2408.13510.

Writes agent.npz, checkpoint.npz (of the last point of the curve), curve.json and curve.svg, and the artefact:
model.onnx, manifest.json, MODEL_CARD.md. The same command writes the same bytes on the same machine.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmrouter.errors import InvalidInputError
from llmrouter.training.agents.rewards import Reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Environment
    from llmrouter.training.agents.learning import Learned, Point

LITERAL, SHIELDED, EVOLUTION, DISTIL = "ddqn-literal", "ddqn-shielded", "evolution", "distil"
PRODUCT = "learned"
EPISODES = {LITERAL: 30, SHIELDED: 30, EVOLUTION: 2_400, DISTIL: 30, PRODUCT: 14_400}
"""Of each learner, unless said."""

REWARDS = {
    LITERAL: (Reward.GUIDED, Reward.BASELINE, Reward.AWARE),
    SHIELDED: (Reward.MARGINAL, Reward.BASELINE, Reward.AWARE, Reward.GUIDED),
}
"""What the learners that have a reward know; the first unless said."""

MOST_EPISODES = 100_000
MOST_INSTANCES = 64
DEFAULT_INSTANCES = 4


def main(rest: Sequence[str]) -> int:
    """Trains one agent; returns the exit status.

    Raises:
        InvalidInputError: an option is wrong, or an extra is not installed.
    """
    options = parser().parse_args(rest)
    check(options)
    try:
        import onnx  # noqa: F401, PLC0415 - the learners and the export need the extra, the options do not
        import optax  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"train needs {error.name}: install llmrouter[train,study]") from error
    from llmrouter.training.agents.export import export  # noqa: PLC0415
    from llmrouter.training.agents.keeping import keep  # noqa: PLC0415
    from llmrouter.training.agents.product_export import export_product  # noqa: PLC0415

    environment = environment_of(options)
    learned = learn(options, environment)
    keep(options.out, learned, shlex.join(["llmrouter", "train", *rest]))
    artefact = export_product(learned) if options.learner == PRODUCT else export(learned, environment)
    artefact.write(options.out)
    sys.stdout.write(f"{options.out}: best after {learned.best.episodes} episodes; {learned.best.judged.said}\n")
    return 0


def parser() -> argparse.ArgumentParser:
    """``llmrouter train`` and its options."""
    top = argparse.ArgumentParser(
        prog="llmrouter train",
        description="Trains a routing agent in simulation, the product's or one in the paper's cell (four V100, 2,000 "
        "requests at 20 a second), and writes its checkpoint, its curve and an ONNX model that agrees with it. Minutes "
        "of one core.",
    )
    add = top.add_argument
    add("--learner", required=True, choices=tuple(EPISODES), help="see docs/agents.md")
    add(
        "--reward",
        choices=[reward.value for reward in Reward],
        help=f"of {LITERAL} (default: {REWARDS[LITERAL][0]}) and {SHIELDED} (default: {REWARDS[SHIELDED][0]})",
    )
    add("--seed", type=int, default=0, help="of everything that is drawn (default: %(default)s)")
    episodes = ", ".join(f"{name} {count:,}" for name, count in EPISODES.items())
    add("--episodes", type=int, metavar="N", help=f"to learn from (default: {episodes})")
    add(
        "--instances",
        type=int,
        help=f"equal ones; the rate and requests grow with them (default: {DEFAULT_INSTANCES}; not of {PRODUCT})",
    )
    add("--teacher", type=Path, metavar="DIR", help=f"of {DISTIL}: folder of an agent that {EVOLUTION} made")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    return top


def check(options: argparse.Namespace) -> None:
    """Fills in what depends on the learner.

    Raises:
        InvalidInputError: a bound is broken, or an option is not the learner's.
    """
    if options.episodes is None:
        options.episodes = EPISODES[options.learner]
    for name, least, most in (
        ("seed", 0, 2**31 - 1),
        ("episodes", 1, MOST_EPISODES),
        ("instances", 2, MOST_INSTANCES),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise InvalidInputError(f"--{name} must be {least} to {most}, not {value}")
    known = REWARDS.get(options.learner, ())
    if options.reward is None:
        options.reward = known[0] if known else None
    elif options.reward not in known:
        of_it = ", ".join(known) or "none: it has an objective of its own"
        raise InvalidInputError(f"--reward {options.reward} is no reward of {options.learner}; it knows {of_it}")
    if options.instances is not None and options.learner == PRODUCT:
        raise InvalidInputError(f"--instances is unknown to --learner {PRODUCT}: it learns on pools of many sizes")
    if options.instances is None:
        options.instances = DEFAULT_INSTANCES
    if (options.teacher is not None) != (options.learner == DISTIL):
        raise InvalidInputError(f"--teacher is needed by --learner {DISTIL} and known to no other")
    if options.out.exists() and not options.out.is_dir():
        raise InvalidInputError(f"--out {options.out} is no folder")


def environment_of(options: argparse.Namespace) -> Environment:
    """The paper's cell, with as many requests and arrivals a second per instance as it has for four."""
    from llmrouter.training.agents.environment import TICK_S, Environment  # noqa: PLC0415

    return Environment(
        instances=options.instances,
        requests=500 * options.instances,
        rate_rps=5.0 * options.instances,
        tick_s=TICK_S if options.learner == LITERAL else 0.0,
    )


def learn(options: argparse.Namespace, environment: Environment) -> Learned:
    """Runs the learner with a bar on standard error; every point of the curve leaves a checkpoint."""
    from llmrouter.training.agents.keeping import keep_checkpoint, read_agent  # noqa: PLC0415

    title = " ".join(part for part in (options.learner, options.reward, f"seed {options.seed}") if part)
    given = {"seed": options.seed, "episodes": options.episodes, "environment": environment}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=options.episodes)

        def on_point(episodes: int, point: Point | None, weights_W: NDArray[np.float64]) -> None:
            bar.update(task, completed=episodes)
            if point is not None:
                bar.update(task, description=f"{title}: {point.judged.short}")
                keep_checkpoint(options.out, weights_W, episodes)

        if options.learner == PRODUCT:
            from llmrouter.training.agents import product  # noqa: PLC0415

            return product.train(seed=options.seed, episodes=options.episodes, on_point=on_point)
        if options.learner == EVOLUTION:
            from llmrouter.training.agents import evolution  # noqa: PLC0415

            return evolution.train(**given, on_point=on_point)
        if options.learner == DISTIL:
            from llmrouter.training.agents import distil  # noqa: PLC0415

            return distil.train(read_agent(options.teacher), **given, on_point=on_point)
        from llmrouter.training.agents import ddqn_literal, ddqn_shielded  # noqa: PLC0415

        train = ddqn_literal.train if options.learner == LITERAL else ddqn_shielded.train
        return train(**given, reward=Reward(options.reward), on_point=on_point)
