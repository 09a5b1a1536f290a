"""What a training leaves in its folder: checkpoints while it runs, then the agent, its curve and its artefact."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.plots import theme
from llmrouter.plots.charts import Axis, Series, line_chart
from llmrouter.plots.markup import Markup, el
from llmrouter.training.agents.environment import Decider
from llmrouter.training.agents.judged import Front, Judged
from llmrouter.training.agents.learning import Learned, Point

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

AGENT = "agent.npz"
CHECKPOINT = "checkpoint.npz"
CURVE = "curve.json"
PLOT = "curve.svg"


def keep_checkpoint(folder: Path, weights_W: NDArray[np.float64], episodes: int) -> None:
    """The weights of now."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / CHECKPOINT, weights=weights_W, episodes=np.array(episodes))


def keep(folder: Path, learned: Learned, command: str) -> None:
    """The agent, and its curve as JSON and SVG. Equal agents give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / AGENT, kind=np.array(learned.decider.kind), weights=learned.decider.weights)
    said = {
        "command": command,
        "learner": learned.learner,
        "reward": learned.reward,
        "seed": learned.seed,
        "tick_s": learned.tick_s,
        "episodes": learned.episodes,
        "best": asdict(learned.best),
        "curve": [asdict(point) for point in learned.curve],
    }
    (folder / CURVE).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (folder / PLOT).write_text(curve_svg(learned), encoding="utf-8")


def read_agent(folder: Path) -> Learned:
    """What ``keep`` wrote.

    Raises:
        InvalidInputError: a file is missing or is not what ``keep`` writes.
    """
    try:
        arrays = np.load(folder / AGENT)
        said = json.loads((folder / CURVE).read_text(encoding="utf-8"))
        return Learned(
            learner=str(said["learner"]),
            reward=str(said["reward"]),
            seed=int(said["seed"]),
            decider=Decider(int(arrays["kind"]), np.asarray(arrays["weights"], np.float64)),
            tick_s=float(said["tick_s"]),
            episodes=int(said["episodes"]),
            best=_point(said["best"]),
            curve=tuple(_point(one) for one in said["curve"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{folder}: no agent of `llmrouter train`: {error}") from error


def _point(said: dict[str, object]) -> Point:
    judged = said["judged"]
    if not isinstance(judged, dict) or not isinstance(said["episodes"], int):
        raise TypeError("a point of the curve is not one")
    made = Front if "worth_pct" in judged else Judged
    return Point(said["episodes"], made(**{name: float(value) for name, value in judged.items()}))


def curve_svg(learned: Learned) -> Markup:
    """Changes on the validation requests over episodes, as a file of its own.

    The scale is that of the trained agent: what it was before its first episode may lie outside.
    """
    product = isinstance(learned.best.judged, Front)
    shown_of = ((1, "worth", "worth_pct") if product else (1, "makespan", "makespan_pct"), (2, "mean E2E", "e2e_pct"))
    base = "the default rule" if product else "round-robin"
    series = [
        Series(
            name=name,
            slot=slot,
            points=tuple((float(point.episodes), getattr(point.judged, field)) for point in learned.curve),
        )
        for slot, name, field in shown_of
    ]
    shown = [value for one in series for _, value in one.points[1:]] or [0.0]
    drawn = line_chart(
        series,
        title=f"{shown_of[0][1]} (blue), mean E2E (orange)",
        description=f"Change against {base} on the validation requests, in percent, over episodes of training.",
        x=Axis(f"episodes of {learned.learner}, seed {learned.seed}"),
        y=Axis(f"against {base}, %"),
        limit=(min(0.0, *shown) - 1.0, max(0.0, *shown) + 1.0),
    )
    return el("svg", el("style", theme.style()), drawn, xmlns="http://www.w3.org/2000/svg", viewbox="0 0 420 260")
