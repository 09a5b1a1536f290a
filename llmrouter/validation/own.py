"""An engine of one's own fitted from one's own measurements, and its profile as a pool takes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import ValidationError

from llmrouter.errors import InvalidInputError
from llmrouter.resources import InlineProfile, ProfileRef
from llmrouter.sim.model import Schedule
from llmrouter.validation.engines import UNBOUND_KV_TOKENS, Coefficients, MeasuredEngine
from llmrouter.validation.fit import STEP_COEFFICIENTS, fit
from llmrouter.validation.judge import judge
from llmrouter.validation.plan import two_rates
from llmrouter.validation.readers import Skipped, read_file
from llmrouter.validation.replay import replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmrouter.validation.fit import FitOptions
    from llmrouter.validation.judge import Verdict
    from llmrouter.validation.measured import MeasuredRun

_IN_A_PROFILE = tuple(name for name in STEP_COEFFICIENTS if name != "prefill_sequence_s")
"""What a pool's profile can say, and the wait before the queue, which it need not."""

ENOUGH_RUNS = 3
"""From so many runs on, two are fitted on and the others judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is known of the engine. ``kv_tokens`` ``None`` means that KV never ran out while measuring."""

    name: str
    mode: Schedule
    kv_tokens: int | None
    max_sequences: int
    token_budget: int


def read_own(paths: Sequence[Path]) -> list[MeasuredRun]:
    """The runs of all files; a file without a column ``run`` is one run, named after it.

    Raises:
        InvalidInputError: a file is malformed, or two runs have one name.
    """
    runs: list[MeasuredRun] = []
    for path in paths:
        if not path.is_file():
            raise InvalidInputError(f"{path} is no file")
        found = read_file(path)
        if isinstance(found, Skipped):
            raise InvalidInputError(f"{path}: line 1: {found.reason}")
        runs.extend(found)
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"run {twice!r} stands in two files: give each file a column run")
    return runs


def fit_own(
    runs: Sequence[MeasuredRun],
    settings: Settings,
    options: FitOptions,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[MeasuredEngine, list[Verdict]]:
    """The fitted engine, and its verdict on every run: on those fitted on, too, which say so.

    Raises:
        InvalidInputError: the settings make no engine, or one that can never hold a measured request.
    """
    fitted_on = two_rates(runs) if len(runs) >= ENOUGH_RUNS else tuple(runs)
    engine = fit(start_of(runs, settings), fitted_on, _IN_A_PROFILE, options=options, on_evaluation=on_evaluation)
    return engine, [judge(run, engine, replay(engine, run, draws=1)) for run in runs]


def start_of(runs: Sequence[MeasuredRun], settings: Settings) -> MeasuredEngine:
    """Where the search begins: from the shortest gaps between tokens and the shortest waits for the first."""
    gaps_s = np.concatenate([run.tpot_s[run.judged] for run in runs])
    gaps_s = gaps_s[np.isfinite(gaps_s) & (gaps_s > 0)]
    ttft_s = np.concatenate([run.ttft_s[run.judged] for run in runs])
    if len(ttft_s) == 0 or len(gaps_s) == 0:
        raise InvalidInputError("no request has measured latencies and more than one output token")
    prompt = np.concatenate([run.prompt_tokens[run.judged] for run in runs])
    base_s = 0.9 * float(np.quantile(gaps_s, 0.05))
    quick_s = float(np.quantile(ttft_s / prompt, 0.1)) * float(np.median(prompt))
    engine = MeasuredEngine(
        name=settings.name,
        layout="requests",
        runs="",
        group=settings.name,
        coefficients=Coefficients(
            base_decode_s=base_s,
            base_prefill_s=base_s,
            prefill_s_per_token=max(quick_s - base_s, quick_s / 2) / float(np.median(prompt)),
            prefill_s_per_token_squared=1e-9,
            context_s_per_token=base_s * 1e-5,
            sequence_s=base_s * 4e-3,
            front_s=2e-3,
            front_s_per_token=1e-6,
            prefill_sequence_s=0.0,
            kv_tokens=float(settings.kv_tokens or UNBOUND_KV_TOKENS),
        ),
        max_sequences=settings.max_sequences,
        token_budget=settings.token_budget,
        schedule=settings.mode,
        documented=dict.fromkeys(
            ("kv_tokens", "max_sequences", "token_budget", "schedule"), "given on the command line"
        ),
    )
    engine.model()
    return engine


def profile_document(engine: MeasuredEngine) -> dict[str, Any]:
    """What a pool of an LLMRouter takes under ``profile``.

    Raises:
        InvalidInputError: a coefficient is outside the bounds of the resource; the message names the field.
    """
    values = engine.coefficients
    try:
        inline = InlineProfile(
            base_decode_seconds=_short(values.base_decode_s),
            base_prefill_seconds=_short(values.base_prefill_s),
            prefill_seconds_per_token=_short(values.prefill_s_per_token),
            prefill_seconds_per_token_squared=_short(values.prefill_s_per_token_squared),
            context_seconds_per_token=_short(values.context_s_per_token),
            sequence_seconds=_short(values.sequence_s),
            kv_tokens=int(values.kv_tokens),
            max_sequences=engine.max_sequences,
            token_budget=engine.token_budget,
            mode="Chunked" if engine.schedule is Schedule.CHUNKED else "PrefillFirst",
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(f"profile {engine.name}: {field}: {first['msg']}") from error
    return ProfileRef(inline=inline).model_dump(by_alias=True, exclude_none=True)


def pool_yaml(engine: MeasuredEngine) -> str:
    """A pool with the fitted profile, to be pasted under ``spec.pools``."""
    name = re.sub(r"[^a-z0-9]+", "-", engine.name.lower()).strip("-")[:63] or "engines"
    pool = {"name": name, "selector": {"matchLabels": {"app": name}}, "profile": profile_document(engine)}
    return yaml.safe_dump([pool], sort_keys=False)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
