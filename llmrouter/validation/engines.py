"""The engines behind the measured runs: what is documented of each, what is fitted, and on which runs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any

from llmrouter.domain import EngineMode, EngineProfile, Role
from llmrouter.sim.model import Admission, EngineModel, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmrouter.validation.measured import MeasuredRun

CATALOGUE = "engines.json"
UNBOUND_KV_TOKENS = 4_000_000
"""A KV cache that never binds."""


class Split(StrEnum):
    """How requests reach the replicas, where the record does not say. ``SESSION``: a user stays with one of them."""

    RANDOM = "Random"
    ROUND_ROBIN = "RoundRobin"
    SESSION = "Session"


class Reuse(StrEnum):
    """What of a prompt is cached when it arrives.

    ``NONE``: nothing. ``SHARE``: a share of it, drawn from a beta law. ``SESSIONS``: what the simulated cache holds of
    the same user's last prompt, from a cache that has seen ``warm_fraction`` of the users before the run.
    """

    NONE = "None"
    SHARE = "Share"
    SESSIONS = "Sessions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """What a fit may move, in the units of ``EngineProfile`` and ``EngineModel``.

    Attributes:
        uncached_fraction: mean of the law of ``Reuse.SHARE`` …
        uncached_concentration: … and the sum of its two parameters.
        transfer_s, transfer_bytes_per_s: of KV from prefill to decode, where they are apart.
    """

    base_decode_s: float
    base_prefill_s: float
    prefill_s_per_token: float
    prefill_s_per_token_squared: float
    context_s_per_token: float
    sequence_s: float
    front_s: float
    front_s_per_token: float
    prefill_sequence_s: float
    kv_tokens: float = UNBOUND_KV_TOKENS
    uncached_fraction: float = 1.0
    uncached_concentration: float = 2.0
    transfer_s: float = 0.0
    transfer_bytes_per_s: float = 25e9


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEngine:
    """One engine deployment of the measured sets.

    Attributes:
        layout, runs: the layout of file and the pattern of run names that it stands behind.
        group: the line of the summary that its runs belong to.
        warm_fraction: share of the users whose first prompt is cached before the run, for ``Reuse.SESSIONS``.
        decode_instances: above 0 prefill and decode are apart: one instance of prefill before so many of decode, to
            which ``base_decode_s``, ``context_s_per_token``, ``sequence_s`` and ``kv_tokens`` then belong.
        kv_bytes_per_token: what a transfer moves.
        documented: parameter → where it is written down.
        fitted: the parameters that were fitted, all of them on …
        fitted_on: … these runs.
        unjudged: why TTFT and E2E of these runs are not judged, if so.
    """

    name: str
    layout: str
    runs: str
    group: str
    coefficients: Coefficients
    max_sequences: int
    token_budget: int
    schedule: Schedule = Schedule.CHUNKED
    admission: Admission = Admission.WATERMARK
    scheduling_lag_steps: int = 0
    decode_steps_between_prefills: int = 0
    replicas: int = 1
    split: Split = Split.RANDOM
    reuse: Reuse = Reuse.NONE
    warm_fraction: float = 1.0
    decode_instances: int = 0
    kv_bytes_per_token: float = 131_072.0
    documented: dict[str, str] = field(default_factory=dict)
    fitted: tuple[str, ...] = ()
    fitted_on: tuple[str, ...] = ()
    unjudged: str | None = None

    def serves(self, run: MeasuredRun) -> bool:
        """Whether the run was measured on this engine."""
        return run.layout == self.layout and re.search(self.runs, run.name) is not None

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block."""
        return self.model().profile.block_tokens

    def instances(self) -> tuple[EngineModel, ...]:
        """One replica as the simulator runs it: an engine, or a prefill instance and its decode instances.

        Raises:
            InvalidInputError: a parameter makes no engine.
        """
        mixed = self.model()
        if self.decode_instances == 0:
            return (mixed,)
        prefill = replace(mixed, profile=replace(mixed.profile, kv_tokens=UNBOUND_KV_TOKENS), role=Role.PREFILL)
        return (
            prefill,
            *(replace(mixed, front_s=0.0, front_s_per_token=0.0, role=Role.DECODE),) * self.decode_instances,
        )

    def model(self) -> EngineModel:
        """The engine if it does everything itself.

        Raises:
            InvalidInputError: a parameter makes no engine.
        """
        values = self.coefficients
        profile = EngineProfile(
            name=self.name,
            base_decode_s=values.base_decode_s,
            base_prefill_s=values.base_prefill_s,
            prefill_s_per_token=values.prefill_s_per_token,
            prefill_s_per_token_squared=values.prefill_s_per_token_squared,
            context_s_per_token=values.context_s_per_token,
            sequence_s=values.sequence_s,
            kv_tokens=int(values.kv_tokens),
            max_sequences=self.max_sequences,
            token_budget=self.token_budget,
            mode=EngineMode.CHUNKED if self.schedule is Schedule.CHUNKED else EngineMode.PREFILL_FIRST,
        )
        return EngineModel(
            profile=profile,
            schedule=self.schedule,
            front_s=values.front_s,
            front_s_per_token=values.front_s_per_token,
            scheduling_lag_steps=self.scheduling_lag_steps,
            prefix_caching=self.reuse is not Reuse.NONE,
            admission=self.admission,
            decode_steps_between_prefills=self.decode_steps_between_prefills,
            prefill_sequence_s=values.prefill_sequence_s,
            kv_bytes_per_token=self.kv_bytes_per_token,
            transfer_s=values.transfer_s,
            transfer_bytes_per_s=values.transfer_bytes_per_s,
        )

    def with_coefficients(self, coefficients: Coefficients, fitted: Iterable[str], on: Iterable[str]) -> MeasuredEngine:
        """The same engine after a fit."""
        return replace(self, coefficients=coefficients, fitted=tuple(fitted), fitted_on=tuple(on))


def shipped() -> tuple[MeasuredEngine, ...]:
    """The engines whose fits come with the product; the first that serves a run is its engine."""
    text = resources.files(__package__).joinpath(CATALOGUE).read_text(encoding="utf-8")
    return tuple(parse(entry) for entry in json.loads(text)["engines"])


def parse(entry: dict[str, Any]) -> MeasuredEngine:
    """An engine from its JSON object."""
    given = dict(entry)
    given["coefficients"] = Coefficients(**given["coefficients"])
    for name, kind in (("schedule", Schedule), ("admission", Admission), ("split", Split), ("reuse", Reuse)):
        if name in given:
            given[name] = kind(given[name])
    for name in ("fitted", "fitted_on"):
        given[name] = tuple(given.get(name, ()))
    return MeasuredEngine(**given)


def dump(engine: MeasuredEngine) -> dict[str, Any]:
    """An engine as its JSON object; ``parse`` reads it."""
    entry = asdict(engine)
    entry["coefficients"] = {name: float(f"{value:.5g}") for name, value in entry["coefficients"].items()}
    return entry
