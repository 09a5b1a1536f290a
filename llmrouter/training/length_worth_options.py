"""The options of ``llmrouter predictor worth``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

PROFILE = "paper-v100:4"
LOADS = "0.8,0.95,1.1,1.3"
SEEDS = 20
BLOCKS = ("placement", "order", "reserve")
FIRST_SEED = 1_000


def add_worth(actions: _SubParsersAction[Any]) -> None:
    """Adds the action ``worth`` to those of ``llmrouter predictor``."""
    worth = actions.add_parser(
        "worth",
        help="what better predictions are worth in the end, for placement, order and reserved KV",
        description="Simulates traffic whose prompts and answer lengths are rows of a file (as eval reads them), with "
        "no prediction, the mean of the task, ours, the truth and others between, the same requests for all, seed by "
        "seed. Prints changes with 95 % intervals and a verdict. Needs the extras `study` and `router`.",
    )
    add = worth.add_argument
    add("--data", type=Path, required=True, metavar="FILE", help="JSON lines, gzipped or not")
    add("--family", action="append", default=[], metavar="F", help="take the rows of this family; repeatable")
    add("--all-prompts", action="store_true", help="take prompts that the model was trained on as well")
    add("--artifact", type=Path, metavar="DIR", help="folder of a text model; else the shipped one")
    add("--hint", action=argparse.BooleanOptionalAction, default=True, help="show the task (default), or not")
    add("--label", choices=("task", "app"), default="task", help="field that is the application (default: %(default)s)")
    add("--skip-bad-rows", action="store_true", help="leave wrong lines out and count them")
    add("--profile", default=PROFILE, metavar="NAME[:COUNT]", help="the engines (default: %(default)s)")
    add("--loads", default=LOADS, metavar="X,Y", help="fractions of the capacity C (default: %(default)s)")
    add("--seeds", type=int, default=SEEDS, metavar="N", help="runs of each (default: %(default)s)")
    add("--first-seed", type=int, default=FIRST_SEED, metavar="K", help="their first seed (default: %(default)s)")
    add("--requests", type=int, metavar="N", help="of a run (default: all prompts but the history, 4,000 at most)")
    add(
        "--history",
        type=int,
        metavar="N",
        help="answers known before a run (default: a fifth of the prompts, 1,000 at most)",
    )
    add("--block", action="append", choices=BLOCKS, help="run this block alone; repeatable (default: all)")
    add("--json", dest="json_path", type=Path, metavar="PATH", help="also write everything to this file")
