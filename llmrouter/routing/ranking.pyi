from collections.abc import Callable

from llmrouter.domain import Candidate, InstanceView

MOST_NAMED: int
"""``best`` names no more."""

def best(scores: list[float], draw: Callable[[], float], most: int) -> list[tuple[float, int]]:
    """The lowest scores, lowest first, and their places; ties by a draw for each score, in the order of the scores.

    Raises:
        FloatingPointError: a score is NaN or infinite; nothing was drawn.
        ValueError: ``most`` is not 1 to ``MOST_NAMED``.
    """

def named(kind: type[Candidate], ranked: list[tuple[float, InstanceView]], most: int) -> tuple[Candidate, ...]:
    """The first ``most`` of the ranked views as candidates of the class ``kind``; each computes its prompt itself."""
