"""``python -m llmrouter.training``: rebuilds the shipped models, or the table that one of them is trained on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmrouter.training.length_export import export_output_length
from llmrouter.training.length_table import collect, decode, encode
from llmrouter.training.marginal_cost_export import export_marginal_cost
from llmrouter.training.onnx_files import ExportDisagreesError

TABLE = Path("output_length") / "random-forest" / "training.csv.gz"


def build_models(source: Path, out: Path) -> None:
    """Writes both models below ``out`` from the table below ``source``."""
    length = export_output_length(decode((source / TABLE).read_bytes()))
    cost = export_marginal_cost()
    for artefact in (cost, length):
        folder = out / artefact.manifest.kind.value / artefact.manifest.name
        artefact.write(folder)
        print(f"{folder}: {len(artefact.model):,} bytes, sha256 {artefact.manifest.sha256}")


def _models(arguments: argparse.Namespace) -> None:
    build_models(arguments.models, arguments.out or arguments.models)


def _table(arguments: argparse.Namespace) -> None:
    rows = collect(arguments.prompts, arguments.traces)
    table = encode(rows)
    arguments.out.write_bytes(table)
    print(f"{arguments.out}: {len(rows):,} rows, {len(table):,} bytes")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmrouter.training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    models = commands.add_parser("models", help="rebuild models/ from the table in it: the same bytes every time")
    models.add_argument("--models", type=Path, default=Path("models"), help="folder with the table (default: models)")
    models.add_argument("--out", type=Path, help="folder to write to (default: the same)")
    models.set_defaults(run=_models)

    table = commands.add_parser("table", help="rebuild the table of lengths from the raw data sets")
    table.add_argument("--prompts", type=Path, required=True, help="prompts.jsonl.gz: prompts with answer lengths")
    table.add_argument("--traces", type=Path, required=True, help="folder with code.csv.gz and conv.csv.gz")
    table.add_argument("--out", type=Path, default=Path("models") / TABLE, help="file to write")
    table.set_defaults(run=_table)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; 2 on bad input, 1 where an export disagrees with what it was made from."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ExportDisagreesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
