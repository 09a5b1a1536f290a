"""``python -m llmrouter.training.length_text_shipped``: the text model that comes with the product.

Trained on the rows of FILE whose source may be shipped, and on no other; the same rows, seed and machine give the same
bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress as Bars

from llmrouter.errors import InvalidInputError
from llmrouter.training.length_evaluation_rows import read_rows
from llmrouter.training.length_text import fit_artifact
from llmrouter.training.length_text_rows import shippable
from llmrouter.training.onnx_files import ExportDisagreesError

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20_261_121
FOLDER = Path("models") / "output_length" / "text"


def build(data: Path, out: Path, *, seed: int, console: Console) -> None:
    """Trains on the rows of ``data`` that may be shipped and writes the artefact to ``out``.

    Raises:
        InvalidInputError: the file is wrong, or holds too few rows that may be shipped.
        ExportDisagreesError: graph and network differ; nothing is written.
    """
    with Bars(console=console, transient=True) as bars:

        def begin(title: str, total: int | None) -> Callable[[int], None]:
            task = bars.add_task(title, total=total)
            return lambda amount: bars.advance(task, amount)

        read = read_rows(data, label="app", on_rows=begin("reading", None))
        rows = shippable(read.rows)
        fitted = fit_artifact(rows, out, seed=seed, budget=None, progress=begin)
    left_out = Counter(row.source or "no source" for row in read.rows) - Counter(row.source for row in rows)
    console.print(f"{len(rows):,} of {len(read.rows):,} rows may be shipped; left out: {dict(left_out)}")
    manifest = fitted.artefact.manifest
    console.print(f"{out}: {len(fitted.artefact.model):,} bytes, sha256 {manifest.sha256}")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 2 on bad input, 1 where graph and network disagree."""
    parser = argparse.ArgumentParser(prog="python -m llmrouter.training.length_text_shipped", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of answered requests, gzipped or not")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="(default: %(default)s)")
    parsed = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        build(parsed.data, parsed.out, seed=parsed.seed, console=console)
    except InvalidInputError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 2
    except ExportDisagreesError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
