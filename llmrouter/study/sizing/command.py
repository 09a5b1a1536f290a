"""``llmrouter plan``: from a command line to tables, JSON and a drawing."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmrouter.errors import InvalidInputError
from llmrouter.study.progress import make_ready
from llmrouter.study.sizing.answer import answer_to, larger
from llmrouter.study.sizing.check import simulated
from llmrouter.study.sizing.options import parse
from llmrouter.study.sizing.table import drawing, print_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.study.sizing.answer import Answer
    from llmrouter.study.sizing.options import Question


def main(rest: Sequence[str]) -> int:
    """Answers one question; returns the exit status.

    Raises:
        InvalidInputError: the command line, or a file that it names, is wrong.
    """
    question = parse(rest)
    result = planned(question, command=shlex.join(["llmrouter", "plan", *rest]))
    if question.plot is not None:
        try:
            question.plot.write_text(str(drawing(result)), encoding="utf-8")
        except OSError as error:
            raise InvalidInputError(f"--plot {question.plot}: {error.strerror}") from error
    if question.as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    else:
        print_plan(result, Console())
    return 0


def planned(question: Question, *, command: str) -> dict[str, Any]:
    """The answer as plain values."""
    answer = answer_to(question)
    asked = question.asked
    return {
        "command": command,
        "trace": question.trace,
        "slo": asdict(question.slo),
        "gpus": question.gpus,
        "asked": {
            "requests": len(asked.requests),
            "rate_rps": asked.rate_rps,
            "models": [
                {
                    "model": one.model,
                    "requests_per_s": one.requests_per_s,
                    "prefill_tokens": one.mean_prefill_tokens,
                    "output_tokens": one.mean_output_tokens,
                    "dispersion": one.dispersion,
                }
                for one in asked.demands
            ],
        },
        "meets": answer.meets,
        "best": asdict(answer.best),
        "simulated": _simulated(question, answer) if question.checks else [],
        "curves": {layout: [asdict(one) for one in curve] for layout, curve in answer.curves.items()},
        "splits": [asdict(one) for one in answer.splits],
    }


def _simulated(question: Question, answer: Answer) -> list[dict[str, Any]]:
    """The best option simulated and, until one meets the SLO, larger ones."""
    make_ready()
    layout = next(one for one in question.layouts if one.name == answer.best.layout)
    runs: list[dict[str, Any]] = []
    for option in (answer.best, *(larger(question, answer.best) if answer.meets else ())):
        found = simulated(question.asked.requests, layout.pools, option.replicas, question.slo)
        runs.append({**asdict(option), "simulated_attainment": found.attainment})
        if found.attainment >= question.slo.attainment:
            break
    return runs
