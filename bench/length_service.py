"""What foretelling lengths costs a router: waits of callers, delays of its event loop, answers that came too late.

Requests with prompts of random words arrive at random (exponential gaps) at each rate; each is foretold, and its answer
learned. ``loop_ms`` is how late a timer of the same event loop fires beyond what it does with nothing to foretell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import sys
import time
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry
from threadpoolctl import threadpool_limits

from llmrouter.artefacts import builtin_model
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.prompt_tokens import PromptTokens
from llmrouter.lengths.served import ServedLengths
from llmrouter.metrics import RouterMetrics
from router_grpc.adapters.length_models import load_lengths
from router_grpc.adapters.tokenizers import TokenizedPrompts
from router_grpc.length_service import LengthPlan, LengthService

SEED = 1
TICK_S = 0.001
PERCENTILES = (50, 95, 99)

Row = dict[str, float | int | str]


def prompts(count: int, words: int, rng: random.Random) -> list[bytes]:
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3_000)]
    return [" ".join(rng.choices(vocabulary, k=words)).encode() for _ in range(count)]


async def ticks(late_ms: list[float]) -> None:
    while True:
        due_s = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        late_ms.append((time.perf_counter() - due_s) * 1e3)


async def one(service: LengthService, prompt: bytes, rng: random.Random, waits_ms: list[float]) -> None:
    request = LengthRequest(application=f"app-{rng.randint(0, 9)}", model="m", max_output_tokens=1_000, temperature=0.7)
    started_s = time.perf_counter()
    foretold = await service.foretell(request, prompt)
    waits_ms.append((time.perf_counter() - started_s) * 1e3)
    await asyncio.sleep(0.01)
    service.finished(foretold, output_tokens=rng.randint(1, 900), prompt_tokens=foretold.prompt_tokens)


async def at_rate(rate_rps: float, *, seconds: float, words: int, plan: LengthPlan | None) -> Row:
    rng = random.Random(SEED)
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    learner = ServedLengths()
    service = LengthService(
        learner,
        TokenizedPrompts(PromptTokens()),
        clock=time.monotonic,
        metrics=metrics,
    )
    service.start()
    service.use(plan or LengthPlan(learns=False))
    sent, waits_ms, late_ms = prompts(256, words, rng), [], []  # type: ignore[var-annotated]
    ticking = asyncio.create_task(ticks(late_ms))
    tasks: set[asyncio.Task[None]] = set()
    cpu_s, ends_s = time.process_time(), time.perf_counter() + seconds
    due_s = time.perf_counter()
    while due_s < ends_s:
        due_s += rng.expovariate(rate_rps)
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        if plan is not None:
            task = asyncio.create_task(one(service, rng.choice(sent), rng, waits_ms))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    cpu_s = time.process_time() - cpu_s
    ticking.cancel()
    await service.close()
    row: Row = {"rate_rps": rate_rps, "prompt_words": words, "what": "predictor" if plan else "nothing"}
    for name, values in (("wait", waits_ms), ("loop", late_ms)):
        found = np.percentile(values, PERCENTILES) if values else [float("nan")] * len(PERCENTILES)
        row |= {f"{name}_p{p}_ms": round(float(v), 3) for p, v in zip(PERCENTILES, found, strict=True)}
    count = max(1, len(waits_ms))
    late = registry.get_sample_value("llmrouter_length_fallbacks_total", {"reason": "Late"}) or 0.0
    dropped = registry.get_sample_value("llmrouter_length_learning_dropped_total") or 0.0
    return row | {
        "late_share": round(late / count, 4),
        "not_learned_share": round(dropped / count, 4),
        "cpu_ms_per_request": round(cpu_s * 1e3 / max(1.0, rate_rps * seconds), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[50.0, 200.0, 500.0, 1_000.0], help="requests/s")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run (default: %(default)s)")
    parser.add_argument("--words", type=int, default=300, help="of each prompt (default: %(default)s)")
    parser.add_argument("--switch-ms", type=float, default=None, help="interpreter's switch interval")
    parser.add_argument("--json", type=Path, default=Path("build/bench/length_service.json"), help="file to write")
    arguments = parser.parse_args()
    if min(*arguments.rates, arguments.seconds, arguments.words) <= 0:
        parser.error("--rates, --seconds and --words must be above 0")
    threadpool_limits(1)
    if arguments.switch_ms is not None:
        sys.setswitchinterval(arguments.switch_ms / 1e3)
    model = load_lengths(*builtin_model("output_length", "text"), expected_sha256=None)
    rows = []
    for rate in arguments.rates:
        for plan in (None, LengthPlan(model=model)):
            run = at_rate(rate, seconds=arguments.seconds, words=arguments.words, plan=plan)
            rows.append(asyncio.run(run))
    command = shlex.join(["python", *sys.argv])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"$ {command}")
    print("".join(f"{name:>20}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>20}" for value in row.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
