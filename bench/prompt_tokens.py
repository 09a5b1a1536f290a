"""How long counting the tokens of one prompt takes: estimated from characters, and by a tokenizer.

The tokenizer is a byte-level BPE made here from the project's own text, or ``--tokenizer FILE``. Every call counts
another text. Processor time of the calling thread, which does all of it, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import string
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llmrouter.lengths.prompt_tokens import PromptTokens
from router_grpc.adapters import tokenizers
from router_grpc.adapters.tokenizers import TokenCounter, TokenizedPrompts

if TYPE_CHECKING:
    from collections.abc import Callable

    from router_grpc.ports import PromptTokenCounter

ROOT = Path(__file__).resolve().parent.parent
SIZES = (256, 1024, 2 * 1024, 8 * 1024, 32 * 1024)
VOCABULARY = 30_000
SEED = 1
WARM_UP = 20

Row = dict[str, str | int | float]


def corpus() -> list[str]:
    files = [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "llmrouter").rglob("*.py"))]
    return [file.read_text(encoding="utf-8") for file in files]


def trained(texts: list[str]) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def makers(texts: list[str], rng: random.Random) -> dict[str, Callable[[int], str]]:
    prose = "\n".join(text for text in texts if text.startswith("#")).encode("ascii", "replace").decode()

    def english(size: int) -> str:
        start = rng.randrange(len(prose) - size)
        return prose[start : start + size]

    return {
        "English": english,
        "random letters": lambda size: "".join(rng.choices(string.ascii_letters, k=size)),
        "Chinese": lambda size: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(size // 3)),
    }


def measured(what: str, texts: list[str], counter: PromptTokenCounter, size: int) -> Row:
    for text in texts[:WARM_UP]:
        counter.count(text, "m")
    took_us = np.empty(len(texts))
    for place, text in enumerate(texts):
        started_ns = time.thread_time_ns()
        counter.count(text, "m")
        took_us[place] = (time.thread_time_ns() - started_ns) / 1_000
    p50, p95, p99 = np.percentile(took_us, (50, 95, 99))
    return {
        "what": what,
        "bytes": size,
        "runs": len(texts),
        "p50_us": round(p50, 1),
        "p95_us": round(p95, 1),
        "p99_us": round(p99, 1),
    }


def rows_of(tokenizer: Tokenizer, texts: list[str], runs: int) -> list[Row]:
    rng = random.Random(SEED)
    estimator = PromptTokens()
    counters: dict[str, PromptTokenCounter] = {
        "estimated": estimator,
        "counted": TokenizedPrompts(estimator, {"m": TokenCounter(tokenizer)}),
    }
    tokenizers.MAX_TEXT_BYTES = max(SIZES)  # to see what lies beyond the bound
    rows = []
    for kind, make in makers(texts, rng).items():
        for size in SIZES:
            made = [make(size) for _ in range(runs)]
            rows += [measured(f"{kind}, {how}", made, one, size) for how, one in counters.items()]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="timed calls per row (default: 300)")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json (default: one made here)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/prompt_tokens.json"), help="file to write")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = corpus()
    tokenizer = trained(texts) if arguments.tokenizer is None else Tokenizer.from_file(str(arguments.tokenizer))
    rows = rows_of(tokenizer, texts, arguments.runs)
    command = shlex.join(["python", *sys.argv])
    report = {
        "command": command,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "vocabulary": tokenizer.get_vocab_size(),
        "rows": rows,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"$ {command}")
    print(f"{'':34}{'bytes':>8}{'p50 µs':>10}{'p95 µs':>10}{'p99 µs':>10}")
    for row in rows:
        print(f"{row['what']:34}{row['bytes']:>8}{row['p50_us']:>10}{row['p95_us']:>10}{row['p99_us']:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
