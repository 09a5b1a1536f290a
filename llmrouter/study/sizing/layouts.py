"""The pools that a plan may choose among: those of a router's own file, or of engine profiles alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.config_file import parse, read_text
from llmrouter.domain import Role
from llmrouter.errors import InvalidInputError
from llmrouter.planning.declared import option_of, slo_of
from llmrouter.planning.inputs import PoolOption
from llmrouter.study.cells import named_profile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmrouter.planning.inputs import Slo
    from llmrouter.resources import PoolSpec

MIXED, STAGED = "mixed", "prefill + decode"
LAYOUTS = {"mixed": MIXED, "staged": STAGED}
"""By the words of the command line."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Pools that serve together."""

    name: str
    pools: tuple[PoolOption, ...]


@dataclass(frozen=True, slots=True)
class Declared:
    """What a router's own file says."""

    layout: Layout
    models: tuple[str, ...]
    slo: Slo | None
    gpu_budget: int | None


def layouts_of(profiles: Sequence[str], gpus: int) -> tuple[Layout, ...]:
    """Of ``NAME[:GPUS]`` each: all of them mixed, and all of them in two stages.

    Raises:
        InvalidInputError: there is no such profile, or its GPUs are no number from 1 to ``gpus``.
    """
    mixed: list[PoolOption] = []
    staged: list[PoolOption] = []
    for text in profiles:
        name, _, size = text.partition(":")
        profile = named_profile(name)
        each = _gpus(size, text, gpus)
        most = gpus // each
        label = name if len(profiles) > 1 else "mixed"
        mixed.append(PoolOption(name=label, profile=profile, gpus_per_replica=each, max_replicas=most))
        for role in (Role.PREFILL, Role.DECODE):
            label = f"{name} {role.value.lower()}" if len(profiles) > 1 else role.value.lower()
            staged.append(PoolOption(name=label, profile=profile, role=role, gpus_per_replica=each, max_replicas=most))
    return Layout(MIXED, tuple(mixed)), Layout(STAGED, tuple(staged))


def declared(path: Path, gpus: int | None) -> Declared:
    """The pools of a file that holds an LLMRouter and its RoutingPolicy.

    Raises:
        InvalidInputError: it is not valid, or neither it nor the caller says how many GPUs there are.
    """
    found = parse(read_text(path))
    spec = found.router
    budget = gpus if gpus is not None else None if spec.rebalance is None else spec.rebalance.gpu_budget
    if budget is None:
        raise InvalidInputError("--gpus is needed: the file has no rebalance.gpuBudget")
    return Declared(
        Layout(found.name, tuple(_option(pool, budget) for pool in spec.pools)),
        tuple(model.name for model in spec.models),
        None if spec.rebalance is None else slo_of(spec.rebalance),
        budget,
    )


def _option(pool: PoolSpec, budget: int) -> PoolOption:
    each, least = pool.gpus_per_replica or 1, pool.min_replicas
    most = max(least, budget // each if pool.max_replicas is None else pool.max_replicas)
    return option_of(pool, current=least, gpus=each, least=least, most=most)


def _gpus(size: str, text: str, most: int) -> int:
    if not size:
        return 1
    if not (size.isdecimal() and 1 <= int(size) <= most):
        raise InvalidInputError(f"--profile {text}: GPUs of an instance must be a number from 1 to {most}")
    return int(size)
