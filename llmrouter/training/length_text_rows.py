"""Rows of answered requests as the arrays that a text model is trained on, and which rows a shipped one may see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.text import DENSE_NAMES, FIELDS, text_features
from llmrouter.training.length_table import LICENCES, SHIPPED_SUBSETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.training.length_evaluation_rows import LengthRow

    Floats = NDArray[np.float32]

LABELS = FIELDS["labels"].stop
"""Columns of ids that name application, model and both; the ids of the text follow them."""

APPLICATION_KNOWN = DENSE_NAMES.index("application_known")
VALIDATION_SHARE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class TextSet:
    """N answered requests.

    ``text`` (N, T) are the ids of words, pairs and 4-grams. ``labels`` (N, 3, 3, LABELS) are the ids of the labels as
    they read with no application, with the request's and with its task; each with no model, with its model and with
    its family. ``dense`` (N, DENSE) is without application. ``group`` (N,) numbers what is ranked together: answers
    of one family, or else of one model. ``validation`` (N,) marks prompts that choose when training stops.
    """

    text: NDArray[np.int32]
    labels: NDArray[np.int32]
    dense: Floats
    output_tokens: NDArray[np.float64]
    group: NDArray[np.int64]
    prompt: NDArray[np.int64]
    validation: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.text)

    def take(self, chosen_N: NDArray[np.bool_]) -> TextSet:
        """The rows that are chosen."""
        return TextSet(
            self.text[chosen_N],
            self.labels[chosen_N],
            self.dense[chosen_N],
            self.output_tokens[chosen_N],
            self.group[chosen_N],
            self.prompt[chosen_N],
            self.validation[chosen_N],
        )


def shippable(rows: Sequence[LengthRow]) -> list[LengthRow]:
    """The rows whose source is on the list of those that may be shipped.

    ``application`` must be the finer label of the data set (``app``): it tells apart what one source collected under
    several terms.
    """
    return [
        row
        for row in rows
        if row.source in LICENCES
        and (row.source not in SHIPPED_SUBSETS or row.request.application in SHIPPED_SUBSETS[row.source])
    ]


def text_set(rows: Sequence[LengthRow], on_rows: Callable[[int], None]) -> TextSet:
    """Features of all rows; what several rows ask alike is looked at once.

    Args:
        rows: answered requests.
        on_rows: called now and then with the rows done since.

    Raises:
        InvalidInputError: there is no row.
    """
    if not rows:
        raise InvalidInputError("there is no row to learn from")
    places: dict[LengthRequest, int] = {}
    text: list[NDArray[np.int32]] = []
    dense: list[Floats] = []
    place_N = np.empty(len(rows), dtype=np.int64)
    for number, row in enumerate(rows):
        bare = replace(row.request, application="", model="")
        if bare not in places:
            places[bare] = len(places)
            features = text_features([bare])
            text.append(features.ids[0, LABELS:])
            dense.append(features.dense[0])
        place_N[number] = places[bare]
        if number % 1_000 == 999:  # noqa: PLR2004 - how often progress is told
            on_rows(1_000)
    on_rows(len(rows) % 1_000)
    groups = np.array([row.family or row.request.model for row in rows])
    digests = np.array([row.prompt_digest.hex() for row in rows])
    return TextSet(
        text=np.stack(text)[place_N],
        labels=_labels(rows),
        dense=np.stack(dense)[place_N],
        output_tokens=np.array([row.output_tokens for row in rows], dtype=np.float64),
        group=np.unique(groups, return_inverse=True)[1],
        prompt=np.unique(digests, return_inverse=True)[1],
        validation=np.array([int.from_bytes(row.prompt_digest[4:8]) < VALIDATION_SHARE * 2**32 for row in rows]),
    )


def _labels(rows: Sequence[LengthRow]) -> NDArray[np.int32]:
    known: dict[tuple[str, str], NDArray[np.int32]] = {}
    labels = np.empty((len(rows), 3, 3, LABELS), dtype=np.int32)
    for number, row in enumerate(rows):
        for a, application in enumerate(("", row.request.application, row.task)):
            for m, model in enumerate(("", row.request.model, row.family)):
                pair = (application, model)
                if pair not in known:
                    known[pair] = text_features([LengthRequest(application=application, model=model)]).ids[0, :LABELS]
                labels[number, a, m] = known[pair]
    return labels
