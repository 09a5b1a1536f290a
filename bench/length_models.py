"""How long output lengths take to foretell and to learn: in a router, by the text model, on a GPU if any, and online.

A prediction of the text model is everything from prompts to quantiles: hashing, the network, the law. Prompts are made
of random words. Predictors that learn online are timed without a model, by a constant in its place, after 600 answers.
``router`` is all that a router's thread does for requests and answers; ``served`` is the part of it that is learned
online, given the model's laws and the features of the text.
Latencies in milliseconds: as a caller waits, and CPU time alone, which other work on the machine disturbs less.
``crossover`` is the smallest batch for which the GPU answers sooner than the core.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnxruntime
from prometheus_client import CollectorRegistry
from threadpoolctl import threadpool_limits

from llmrouter.artefacts import builtin_model
from llmrouter.lengths.blended import Blended
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.prompt_tokens import PromptTokens
from llmrouter.lengths.recalibrated import Recalibrated
from llmrouter.lengths.served import ServedLengths
from llmrouter.lengths.simple import ConstantLengths
from llmrouter.lengths.text import text_features
from llmrouter.metrics import RouterMetrics
from llmrouter.training.length_evaluation_artefact import load_model
from router_grpc.adapters.length_models import load_lengths
from router_grpc.adapters.onnx_model import CPU, CUDA, cuda_usable
from router_grpc.adapters.tokenizers import TokenizedPrompts
from router_grpc.excerpts import excerpt
from router_grpc.length_service import LengthPlan, LengthService, _Asked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.lengths.predictor import LengthPredictor

BATCHES = (1, 2, 4, 8, 16, 32, 64)
WORDS = {"short prompts, 40 words": 40, "long prompts, 2,000 words": 2_000, "10-MB prompts": 1_700_000}
HUGE_WORDS = 100_000
SERVED_BATCHES = (1, 8, 64)
SERVED_WORDS = 300
SEED = 1
WARM_UP = 20
PERCENTILES = (50, 95, 99)
ANSWERS = 600
APPLICATIONS = 8

Row = dict[str, str | int | float]
T = TypeVar("T")


def prompts(words: int, count: int, rng: random.Random) -> list[LengthRequest]:
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3_000)]
    asked = []
    for _ in range(count):
        text = " ".join(rng.choices(vocabulary, k=words))
        asked.append(LengthRequest(text, int(1.3 * words), "chat", "a-model", max_output_tokens=1_000, temperature=0.7))
    return asked


def measured(what: str, where: str, *, size: int, runs: int, call: Callable[[], object]) -> Row:
    for _ in range(WARM_UP):
        call()
    took_ms, busy_ms = np.empty(runs), np.empty(runs)
    for run in range(runs):
        started_ns, worked_ns = time.perf_counter_ns(), time.thread_time_ns()
        call()
        took_ms[run] = (time.perf_counter_ns() - started_ns) / 1e6
        busy_ms[run] = (time.thread_time_ns() - worked_ns) / 1e6
    row: Row = {"what": what, "on": where, "batch": size, "runs": runs}
    for name, of_runs in (("", took_ms), ("cpu_", busy_ms)):
        percentiles = np.percentile(of_runs, PERCENTILES)
        row |= {f"{name}p{p}_ms": round(float(v), 3) for p, v in zip(PERCENTILES, percentiles, strict=True)}
    return row


def session(model: bytes, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def foretell(asked: list[LengthRequest], on: onnxruntime.InferenceSession) -> object:
    features = text_features(asked)
    return on.run(["quantiles", "rank"], {"ids": features.ids.astype(np.float32), "dense": features.dense})


def measurements(runs: int) -> list[Row]:
    rng = random.Random(SEED)
    model_bytes, manifest = builtin_model("output_length", "text")
    model, _ = load_model(model_bytes, manifest)
    sessions = {"cpu": session(model_bytes, CPU)}
    if cuda_usable():
        sessions["cuda"] = session(model_bytes, CUDA)
    rows = []
    for kind, words in WORDS.items():
        huge = words > HUGE_WORDS
        asked = prompts(words, 2 if huge else BATCHES[-1], rng)
        for size in (1, 2) if huge else BATCHES:
            batch = asked[:size]
            row = partial(measured, size=size, runs=runs)
            rows.append(row(f"features, {kind}", "cpu", call=partial(text_features, batch)))
            rows += [
                row(f"features and network, {kind}", where, call=partial(foretell, batch, one))
                for where, one in sessions.items()
            ]
            rows.append(row(f"law, {kind}", "cpu", call=partial(model.predict, batch)))
    return rows


def blend() -> Blended:
    return Blended([Recalibrated(ConstantLengths(256)), OnlineQuantiles()])


LEARNERS: dict[str, Callable[[], LengthPredictor]] = {
    "application quantiles": OnlineQuantiles,
    "quantiles, recalibrated": lambda: Recalibrated(OnlineQuantiles()),
    "blend": blend,
    "blend, recalibrated": lambda: Recalibrated(blend()),
}


def learners(runs: int) -> list[Row]:
    rng = random.Random(SEED)
    asked = [
        LengthRequest(
            prompt_tokens=rng.randrange(4_000),
            application=f"app-{rng.randrange(APPLICATIONS)}",
            model="a-model",
            max_output_tokens=1_000,
        )
        for _ in range(ANSWERS)
    ]
    rows = []
    for name, make in LEARNERS.items():
        predictor = make()
        for request in asked:
            predictor.learn(request, rng.randrange(1, 900))
        row = partial(measured, where="cpu", runs=runs)
        rows += [
            row(f"{name}: predict", size=size, call=partial(predictor.predict, asked[:size]))
            for size in (1, BATCHES[-1])
        ]
        law = predictor.predict(asked[:1]).row(0)
        rows.append(row(f"{name}: learn", size=1, call=partial(predictor.learn, asked[0], 100.0, law)))
    return rows


def served(runs: int) -> list[Row]:
    rng = random.Random(SEED)
    plan = LengthPlan(model=load_lengths(*builtin_model("output_length", "text"), expected_sha256=None))
    learner, metrics = ServedLengths(), RouterMetrics(CollectorRegistry())
    service = LengthService(learner, TokenizedPrompts(PromptTokens()), clock=lambda: 0.0, metrics=metrics)
    answer, learn = service._answer, service._learn  # noqa: SLF001 - what its thread runs
    asked = []
    for request in prompts(SERVED_WORDS, BATCHES[-1], rng):
        labelled = replace(request, prompt=None, prompt_tokens=None, application=f"app-{rng.randrange(APPLICATIONS)}")
        asked.append(_Asked(labelled, excerpt((request.prompt or "").encode()), plan))
    for place in range(ANSWERS):
        (one,) = answer([asked[place % len(asked)]])
        learn(one, output_tokens=rng.randrange(1, 900), prompt_tokens=one.prompt_tokens)
    foretold = answer(asked)
    kept = [one.request for one in foretold]
    row = partial(measured, where="cpu", runs=runs)
    rows = []
    for size in SERVED_BATCHES:
        rows.append(row("router: foretell", size=size, call=_each(answer, _batches(asked, size))))
        rows.append(row("served: predict", size=size, call=_each(learner.predict, _batches(kept, size))))
    answered = partial(learn, output_tokens=100, prompt_tokens=400)
    rows.append(row("router: learn", size=1, call=_each(answered, foretold)))
    rows.append(row("served: learn", size=1, call=_each(partial(learner.learn, output_tokens=100.0), kept)))
    return rows


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _each(call: Callable[[T], object], items: Sequence[T]) -> Callable[[], object]:
    """Calls with one item after the other, so that memory is no warmer than in service."""
    turn = cycle(items)
    return lambda: call(next(turn))


PARTS = {"served": served, "online": learners, "text": measurements}


def crossover(rows: list[Row]) -> int | None:
    """Smallest batch of short prompts from which the GPU is sooner; ``None`` where it never is, or there is none."""
    kind = f"features and network, {next(iter(WORDS))}"
    median = {(row["on"], row["batch"]): float(row["p50_ms"]) for row in rows if row["what"] == kind}
    sooner = [size for size in BATCHES if median.get(("cuda", size), np.inf) < median.get(("cpu", size), 0.0)]
    return min(sooner, default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500, help="timed calls per row (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/length_models.json"), help="file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to time (default: all)")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    threadpool_limits(1)
    rows = [row for part in arguments.parts for row in PARTS[part](arguments.runs)]
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "gpu": any(row["on"] == "cuda" for row in rows),
        "crossover": crossover(rows),
        "rows": rows,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"$ {report['command']}")
    names = [f"{kind}p{p}_ms" for kind in ("", "cpu_") for p in PERCENTILES]
    print(f"{'':52}{'on':>6}{'batch':>7}{''.join(f'{name:>11}' for name in names)}")
    for row in rows:
        numbers = "".join(f"{row[name]:>11}" for name in names)
        print(f"{row['what']:52}{row['on']:>6}{row['batch']:>7}{numbers}")
    gpu = "no GPU here" if not report["gpu"] else f"GPU sooner from a batch of: {report['crossover'] or 'none'}"
    print(gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
