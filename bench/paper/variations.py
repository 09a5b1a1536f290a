"""What an inferred choice is worth: cells with one of them changed, each probed with four routes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bench.paper import cells
from llmrouter.arrivals.laws import SyntheticLaw
from llmrouter.sim.model import Admission

if TYPE_CHECKING:
    from bench.paper.cells import PaperCell
    from llmrouter.arrivals.cells import Cell


NO_WATERMARK = "no watermark"
SLOW_A100 = "every step 1.9 times as long, 1,200 KV blocks"
SLOW_A100_NO_WATERMARK = f"{SLOW_A100}, no watermark"
FASTER_AND_SMALLER = "no watermark, 900 KV blocks, steps 8 % shorter"


def _kv(cell: PaperCell, blocks: int) -> PaperCell:
    profile = cell.engine.profile
    return cell.with_profile(replace(profile, kv_tokens=blocks * profile.block_tokens))


def _slower(cell: PaperCell, factor: float) -> PaperCell:
    return cell.with_profile(cell.engine.profile.slower(factor))


def _outputs_to(source: Cell, most_tokens: int) -> Cell:
    if not isinstance(source.law, SyntheticLaw):
        raise TypeError(f"{source.name} has no lengths to change: it is a recorded trace")
    return replace(source, law=replace(source.law, output_clip=(1, most_tokens)))


def _main() -> dict[str, PaperCell]:
    cell = cells.main_cell()
    return {
        "as in the table": cell,
        "300 KV blocks": _kv(cell, 300),
        "600 KV blocks": _kv(cell, 600),
        "900 KV blocks": _kv(cell, 900),
        "1,600 KV blocks": _kv(cell, 1_600),
        "2,400 KV blocks: never short": _kv(cell, 2_400),
        "watermark of 6 blocks, not 12": _watermark(cell, 6),
        NO_WATERMARK: _watermark(cell, 0),
        FASTER_AND_SMALLER: _watermark(_kv(_slower(cell, 0.92), 900), 0),
        "admission by worst case": replace(cell, engine=replace(cell.engine, admission=Admission.WORST_CASE)),
        "outputs up to 4,000 tokens": replace(cell, source=_outputs_to(cell.source, 4_000)),
        "13.5 requests/s": replace(cell, rate_rps=13.5),
        "40 requests/s": replace(cell, rate_rps=40.0),
        "gaps twice as uneven (CV 2)": replace(cell, cv=2.0),
        "no tick: acts at once": replace(cell, tick_s=0.0),
        "5,000 requests": replace(cell, requests=5_000),
    }


def _eight() -> dict[str, PaperCell]:
    cell = cells.eight_instances()
    return {"as in the table": cell, NO_WATERMARK: _watermark(cell, 0)}


def _a100() -> dict[str, PaperCell]:
    cell = cells.a100()
    return {
        "as in the table": cell,
        "2,000 requests": replace(cell, requests=2_000),
        "acts every 0.02 s": replace(cell, tick_s=0.02),
        "acts every 0.031 s": replace(cell, tick_s=0.031),
        "500 KV blocks": _kv(cell, 500),
        "every step 2.6 times as long": _slower(cell, 2.6),
        SLOW_A100: _kv(_slower(cell, 1.9), 1_200),
        SLOW_A100_NO_WATERMARK: _watermark(_kv(_slower(cell, 1.9), 1_200), 0),
        "2,000 requests, every step 6.5 times as long, 1,200 KV blocks": replace(
            _kv(_slower(cell, 6.5), 1_200), requests=2_000
        ),
    }


def _production() -> dict[str, PaperCell]:
    cell = cells.production()
    return {
        "as in the table": cell,
        "2,500 KV blocks": _kv(cell, 2_500),
        "2,500 KV blocks, no watermark": _watermark(_kv(cell, 2_500), 0),
        "every step 1.9 times as long": _slower(cell, 1.9),
        "2 instances": replace(cell, instances=2),
    }


def all_variations() -> dict[str, dict[str, PaperCell]]:
    """By the name of the cell they vary."""
    return {"v100-4": _main(), "v100-8": _eight(), "a100-4": _a100(), "production": _production()}


def _watermark(cell: PaperCell, blocks: int) -> PaperCell:
    """The same cell with so many KV blocks left free by admissions."""
    profile = cell.engine.profile
    fraction = blocks / (profile.kv_tokens // profile.block_tokens)
    return replace(cell, engine=replace(cell.engine, watermark_fraction=fraction))
