"""What an output-length model sees of a request: written once, used by training and serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def application_columns(applications: Sequence[str]) -> dict[str, int]:
    """Column of each application that a model knows; column 0 is the prompt length."""
    return {name: 1 + index for index, name in enumerate(applications)}


def length_features(
    prompt_tokens: Sequence[int], applications: Sequence[str], columns: Mapping[str, int]
) -> NDArray[np.float32]:
    """Features (N, 1 + A): ln(1 + prompt tokens), then one-hot application; all zeros where it is not known.

    Raises:
        ValueError: the two sequences differ in length.
    """
    features_NF = np.zeros((len(prompt_tokens), 1 + len(columns)), dtype=np.float32)
    features_NF[:, 0] = np.log1p(np.maximum(np.asarray(prompt_tokens, dtype=np.float64), 0.0))
    for row, (application, _) in enumerate(zip(applications, prompt_tokens, strict=True)):
        column = columns.get(application)
        if column is not None:
            features_NF[row, column] = 1.0
    return features_NF
