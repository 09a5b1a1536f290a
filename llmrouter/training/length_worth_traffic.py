"""Traffic whose answers are real: rows of a file in random order, some as history, the others as arriving requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import generators
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.predictor import LengthRequest
    from llmrouter.training.length_evaluation_rows import LengthRow

_ORDER, _GAPS = 0x776F, 0x7267
"""Random streams of a run: which rows and in which order; the gaps between arrivals."""

MIN_PROMPTS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The rows that requests are drawn from, as columns (R,).

    ``prompt`` numbers the prompts: rows of one number have the same. ``applications`` are the names of the tasks,
    ``application`` an index into them: what a router is told, "" without the hint.
    """

    requests: tuple[LengthRequest, ...]
    prompt: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    application: NDArray[np.int64]
    applications: tuple[str, ...]

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return int(self.prompt.max()) + 1


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Rows of a population for one run: ``history`` (H,) is answered before it begins, ``traffic`` (N,) arrives."""

    population: Population
    history: NDArray[np.int64]
    traffic: NDArray[np.int64]
    seed: int

    def workload(self, rate_rps: float) -> Workload:
        """The traffic as Poisson arrivals at a rate, without predictions; at another rate all gaps are scaled."""
        gaps = np.random.default_rng((self.seed, _GAPS))
        return self._workload(self.traffic, generators.poisson(rate_rps, len(self.traffic), gaps))

    def past(self) -> Workload:
        """The history, all at one instant: what may be known of lengths before the run."""
        return self._workload(self.history, np.zeros(len(self.history)))

    def _workload(self, rows: NDArray[np.int64], arrived_at_s: NDArray[np.float64]) -> Workload:
        of = self.population
        return Workload.of(
            arrived_at_s,
            of.prompt_tokens[rows],
            of.output_tokens[rows],
            application=of.application[rows],
            applications=of.applications,
        )


def unseen(rows: Sequence[LengthRow], trained_on: Collection[str]) -> list[LengthRow]:
    """The rows whose prompt a model cannot have been trained on, whatever answer to it.

    Training takes the rows of ``trained_on`` (names of sources) that are not held out; a prompt of theirs is seen even
    where another source has it as well.
    """
    seen = {row.prompt_digest for row in rows if row.source in trained_on and not row.held_out}
    return [row for row in rows if row.prompt_digest not in seen]


def population(rows: Sequence[LengthRow], *, hint: bool, max_tokens: int) -> Population:
    """Rows as a population; those of more than ``max_tokens``, prompt and answer, are left out.

    Raises:
        InvalidInputError: fewer than ``MIN_PROMPTS`` prompts are left.
    """
    fitting = [row for row in rows if _prompt_tokens(row) + row.output_tokens <= max_tokens]
    digests, prompt_R = np.unique([row.prompt_digest.hex() for row in fitting], return_inverse=True)
    if len(digests) < MIN_PROMPTS:
        raise InvalidInputError(f"{len(digests)} prompts to draw requests from are too few: at least {MIN_PROMPTS}")
    requests = tuple(row.seen(hint=hint) for row in fitting)
    applications, application_R = np.unique([one.application for one in requests], return_inverse=True)
    return Population(
        requests,
        prompt_R.astype(np.int64),
        np.array([_prompt_tokens(row) for row in fitting], np.int64),
        np.array([row.output_tokens for row in fitting], np.int64),
        application_R.astype(np.int64),
        tuple(applications.tolist()),
    )


def drawn(of: Population, *, history: int, requests: int, seed: int) -> Drawn:
    """One row of each prompt, in random order: the first ``history`` are the past, the next ``requests`` arrive.

    Who learns a prompt's answer must not meet that prompt again, with another model's answer. No prompt comes twice
    while there are others: where more requests are asked for than are left after the history, another random order of
    the same rows begins.
    """
    rng = np.random.default_rng((seed, _ORDER))
    order = rng.permutation(len(of.requests))
    _, first = np.unique(of.prompt[order], return_index=True)
    order = order[np.sort(first)]
    rest = order[history:]
    rounds = [rest] + [rng.permutation(rest) for _ in range((requests - 1) // len(rest))]
    return Drawn(of, order[:history], np.concatenate(rounds)[:requests], seed)


def _prompt_tokens(row: LengthRow) -> int:
    return max(1, row.request.prompt_tokens or 0)
