"""Sums over the few numbers of laws and texts. A wrong shape is a ValueError; Q is for the levels of a law."""

from collections.abc import Sequence

from numpy import float32, float64, int32, int64
from numpy.typing import NDArray

def moved(latent: NDArray[float64], factors: NDArray[float64]) -> NDArray[float64]:
    """Quantiles (N, Q) times their factors (N, Q), in order and within 1 and 1e6.

    Those that cross give way to the median's side, so that each keeps its own level's feedback.
    """

def blended(
    weights: NDArray[float64], laws: Sequence[tuple[NDArray[float64], NDArray[float64]]]
) -> tuple[NDArray[float64], NDArray[float64]]:
    """Weighted geometric means of experts' quantiles (N, Q), within 1 and 1e6, and of their ranks (N,).

    Args:
        weights: (N, experts).
        laws: quantiles (N, Q) and ranks (N,) of each expert, at most 16.
    """

def near_quantiles(
    forecast: float,
    sharpness: float,
    levels: NDArray[float64],
    sorted_3K: NDArray[float64],
    said: NDArray[float64],
    prior: NDArray[float64],
    scratch: NDArray[float64],
    found: NDArray[float64],
) -> None:
    """Quantiles at ``levels`` of residuals, each weighing ``prior + said · exp(sharpness · (forecast − its own)²)``.

    Args:
        forecast: of the request.
        sharpness: of the weights; negative.
        levels: ascending, within 0 and 1.
        sorted_3K: forecasts, labels and residuals of K examples, in the order of residuals.
        said, prior: (K,).
        scratch: room for K numbers or more.
        found: is filled, one for each level; between examples quantiles are linear in the level.
    """

def word_sums(
    ids: NDArray[int32], weights: NDArray[float32], strengths: NDArray[float32], least_norm: float
) -> NDArray[float64]:
    """Sums (N,) of weight times strength of the words ``ids`` (N, I), over the norm of their strengths.

    Raises:
        ValueError: an id is not within 0 and the number of weights.
    """

def lay_out(
    inputs: NDArray[float64],
    dense: NDArray[float32],
    scales: NDArray[float64],
    ids: NDArray[int32],
    label_columns: NDArray[int64],
    latent: NDArray[float64] | None,
    level: float,
    usual: float,
) -> None:
    """Fills ``inputs`` (N, D), which are 0: the level, dense features scaled, labels hashed, and ln quantiles − usual.

    The first ``len(label_columns)`` of ``ids`` are labels; each has so many columns, one of which becomes 1.
    """

def mean_below(latent: tuple[float, ...], limit: float) -> float:
    """E[min(length, limit)] of the law with these quantiles: of each segment the logarithmic mean up to the limit."""

def below(latent: tuple[float, ...], tokens: float) -> float:
    """P(length < tokens): the quantile function turned round; from the left where it is flat."""
