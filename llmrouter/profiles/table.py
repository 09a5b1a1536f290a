"""The profiles as rows of a Markdown table: ``python -m llmrouter.profiles.table``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llmrouter.profiles import KNOWN

if TYPE_CHECKING:
    from llmrouter.profiles.source import KnownProfile

HEADER = (
    "| profile | model, GPUs | base decode / prefill ms | g1 µs | g1b ns | g2 ns | g3 µs | KV tokens | mode | basis |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def rows() -> list[str]:
    """One row a profile, in the order of ``KNOWN``."""
    return [_row(known) for known in KNOWN.values()]


def _row(known: KnownProfile) -> str:
    one = known.profile
    gpus = known.gpu if known.gpus == 1 else f"{known.gpus} × {known.gpu}"
    numbers = " | ".join(
        f"{value:.4g}"
        for value in (
            one.prefill_s_per_token * 1e6,
            one.prefill_s_per_token_squared * 1e9,
            one.context_s_per_token * 1e9,
            one.sequence_s * 1e6,
        )
    )
    return (
        f"| `{one.name}` | {known.model}, {gpus} | {one.base_decode_s * 1e3:.4g} / {one.base_prefill_s * 1e3:.4g} "
        f"| {numbers} | {one.kv_tokens:,} | {one.mode} | {known.basis.name.lower()} |"
    )


if __name__ == "__main__":
    sys.stdout.write("\n".join((*HEADER, *rows())) + "\n")
