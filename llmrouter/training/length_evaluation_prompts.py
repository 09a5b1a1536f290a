"""How well prompt tokens are estimated without a tokenizer: before any report, and online."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.lengths.prompt_tokens import PromptTokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.training.length_evaluation_rows import LengthRow

MOST_ROWS = 5_000


def prompt_token_errors(rows: Sequence[LengthRow], rng: np.random.Generator) -> dict[str, Any] | None:
    """Median and 90 % quantile of |estimate ÷ count − 1| on rows that say their count; ``None`` where none does.

    At most ``MOST_ROWS`` distinct prompts in random order; each is estimated, then its count is learned, as one model.
    """
    told = list({row.prompt_digest: row for row in rows if row.counted}.values())
    if not told:
        return None
    chosen = [told[place] for place in rng.permutation(len(told))[:MOST_ROWS]]
    untaught, taught = PromptTokens(), PromptTokens()
    before, online = [], []
    for row in chosen:
        prompt, count = row.request.prompt or "", row.request.prompt_tokens or 0
        if count >= 1:
            before.append(abs(untaught.estimate(prompt) / count - 1.0))
            online.append(abs(taught.estimate(prompt) / count - 1.0))
        taught.learn(prompt, count)
    return {
        "prompts": len(before),
        "refused": {str(reason): count for reason, count in taught.refused.items()},
        "before_any_report": _spread(before),
        "online": _spread(online),
    }


def _spread(errors: Sequence[float]) -> dict[str, float] | None:
    if not errors:
        return None
    median, high = np.quantile(errors, (0.5, 0.9))
    return {"median": round(float(median), 4), "p90": round(float(high), 4)}
