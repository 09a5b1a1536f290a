"""Replicas follow the traffic on a real Kubernetes: from chat to summaries, within a budget of GPUs."""

from __future__ import annotations

import base64
import gzip
import json
import math
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.cluster.errors import PartFailedError
from llmrouter.testbed.comparison import MODEL, write_summary
from llmrouter.testbed.comparison_run import run_to_exit_status, verdict
from llmrouter.testbed.demo_rebalance_view import EVENTS, SECTION, RebalanceView
from llmrouter.testbed.demo_run import parse_target, serve, staged, traffic
from llmrouter.testbed.demo_target import ROUTER, manifest, replay_pod, with_image
from llmrouter.testbed.measure import percentile
from llmrouter.testbed.pod_watch import PodWatch
from llmrouter.testbed.replay_events import ReplayState
from llmrouter.testbed.terminal_view import excerpt
from llmrouter.testbed.trace import COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from llmrouter.testbed.cluster.progress import Progress
    from llmrouter.testbed.demo_run import DemoOptions
    from llmrouter.testbed.demo_target import DemoTarget
    from llmrouter.testbed.measure import Outcome

RATE_RPS = 4.0
CHAT_S, SUMMARIES_S = 85.0, 160.0
RECOMMEND_S = 35.0
"""So long the mix takes to know how long answers are: they have to end first."""
LENGTHS = {"chat": (150, 400), "summaries": (900, 60)}
"""Median tokens of prompts and answers; both are lognormal with a sigma of 0.4."""
SIGMA = 0.4
BUDGET_GPUS = 4
SLO_TTFT_S, SLO_TPOT_S = 2.0, 0.1
LOOK_EVERY_S = 1.0
POOL_LABEL = "llmrouter.dev/demo-pool"
TRACE_MOUNT = "/etc/llmrouter-demo"
CONDITION = "RebalanceActive"


def trace_csv(seed: int = 7) -> str:
    """A trace of chat and then summaries, Poisson arrivals at the demo's rate."""
    rng, at_s = random.Random(seed), 0.0
    lines = [",".join(COLUMNS)]
    for application, seconds in (("chat", CHAT_S), ("summaries", SUMMARIES_S)):
        prompt, output = LENGTHS[application]
        for _ in range(math.ceil(RATE_RPS * seconds) + 1):
            at_s += rng.expovariate(RATE_RPS)
            tokens = [max(1, round(rng.lognormvariate(math.log(median), SIGMA))) for median in (prompt, output)]
            lines.append(f"{at_s:.4f},{application},{tokens[0]},{tokens[1]}")
    return "\n".join(lines) + "\n"


def traffic_objects(image: str) -> list[dict[str, Any]]:
    """The replay pod, and the ConfigMap that its trace is in."""
    packed = gzip.compress(trace_csv().encode(), mtime=0)
    metadata = {"name": "demo-trace", "labels": {"app.kubernetes.io/part-of": "llmrouter-demo"}}
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "binaryData": {"trace.csv.gz": base64.b64encode(packed).decode()},
    }
    first = math.ceil(RATE_RPS * CHAT_S) + 1
    arguments = ["--model", MODEL, "--rate", f"{RATE_RPS:g}", "--json", "--trace", f"{TRACE_MOUNT}/trace.csv.gz"]
    arguments += ["--stretch", f"chat:0:{CHAT_S:g}", "--stretch", f"summaries:{first}:{SUMMARIES_S:g}"]
    pod = replay_pod(image, arguments)
    pod["spec"]["volumes"] = [{"name": "trace", "configMap": {"name": "demo-trace"}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "trace", "mountPath": TRACE_MOUNT, "readOnly": True}]
    return [config_map, pod]


class Following:
    """Follows the status of rebalancing, while traffic flows."""

    def __init__(self, target: DemoTarget, traffic: Iterator[ReplayState], pods: PodWatch, view: RebalanceView) -> None:
        self._target = target
        self._traffic = traffic
        self._pods = pods
        self._view = view
        self.began_s = time.monotonic()
        self.state = ReplayState()
        self.splits: list[tuple[float, str, dict[str, int]]] = []
        """Declared replicas by pool whenever they changed, with the seconds since the traffic began and its stretch."""

    def until(
        self, holds: Callable[[dict[str, Any], ReplayState], bool], what: str, *, within_s: float
    ) -> dict[str, Any]:
        """The status once ``holds`` says so of it; raises PartFailedError where it does not in time."""
        ends_s, look_at_s = time.monotonic() + within_s, 0.0
        for state in self._traffic:
            self.state, now_s = state, time.monotonic()
            if now_s < look_at_s:
                continue
            look_at_s = now_s + LOOK_EVERY_S
            status = self._target.status()
            self._note(status)
            self._view.show(status, self.state, self._pods)
            if holds(status, self.state):
                return status
            if now_s > ends_s:
                said = status.get("rebalance") or {}
                raise PartFailedError(f"not within {within_s:g} s: {what}; {said.get('phase')}: {said.get('message')}")
        return self._target.status()

    def _note(self, status: dict[str, Any]) -> None:
        split = declared_of(status)
        if split and (not self.splits or self.splits[-1][2] != split):
            self.splits.append((round(time.monotonic() - self.began_s, 1), self.state.stretch, split))


def declared_of(status: dict[str, Any]) -> dict[str, int]:
    """Replicas of each pool's scale target."""
    return {one["pool"]: one["replicas"] for one in (status.get("rebalance") or {}).get("applied") or ()}


def tell(target: DemoTarget, following: Following, view: RebalanceView) -> dict[str, Any]:
    """The story: recommended, done, and done again when the traffic shifts."""
    view.chapter("1. Chat arrives at two engines for prompts and two for answers; mode Recommend says what should be")
    began_s = time.monotonic()
    recommended = following.until(
        lambda status, _: (
            (status.get("rebalance") or {}).get("phase") == "Recommending" and time.monotonic() - began_s >= RECOMMEND_S
        ),
        "a recommendation",
        within_s=RECOMMEND_S + 30.0,
    )
    view.describe(excerpt(target.kubectl("describe", "llmrouter", ROUTER), SECTION, EVENTS))

    view.chapter("2. kubectl patch: mode Auto. Instances drain, pools shrink, and then others grow")
    patch = json.dumps({"spec": {"rebalance": {"mode": "Auto"}}})
    target.kubectl("patch", "llmrouter", ROUTER, "--type", "merge", "--patch", patch)
    following.until(lambda _, state: state.stretch == "summaries", "the shift of the traffic", within_s=CHAT_S + 30.0)
    for_chat = declared_of(target.status())

    view.chapter("3. The traffic shifts: summaries of long texts in the place of chat")
    following.until(
        lambda _, state: state.stretch not in {"chat", "summaries", "start"},
        "its end",
        within_s=SUMMARIES_S + 60.0,
    )
    last = target.status()
    view.describe(excerpt(target.kubectl("describe", "llmrouter", ROUTER), SECTION, EVENTS))
    return {
        "recommended": recommended["rebalance"]["summary"],
        "plan": recommended["rebalance"]["message"],
        "for_chat": for_chat,
        "for_summaries": declared_of(last),
        "splits": [{"at_s": at_s, "traffic": stretch, **split} for at_s, stretch, split in following.splits],
    }


def attainment(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What requests got: the share within the SLO, and times."""
    within = [one for one in outcomes if _meets(one)]
    ttft = [one.ttft_s for one in outcomes if one.ttft_s is not None]
    tpot = [one.tpot_s for one in outcomes if one.tpot_s is not None]
    return {
        "requests": len(outcomes),
        "failed": sum(one.failed for one in outcomes),
        "within_slo": round(len(within) / len(outcomes), 3) if outcomes else None,
        "ttft_p90_s": _rounded(percentile(ttft, 90)),
        "tpot_p90_s": _rounded(percentile(tpot, 90)),
    }


def _meets(one: Outcome) -> bool:
    if one.failed or one.ttft_s is None:
        return False
    return one.ttft_s <= SLO_TTFT_S and (one.tpot_s is None or one.tpot_s <= SLO_TPOT_S)


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)


def thirds(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The first, middle and last third of a stretch by arrival."""
    ordered = sorted(outcomes, key=lambda one: one.arrived_at_s)
    size = max(1, len(ordered) // 3)
    return [attainment(part) for part in (ordered[:size], ordered[size : 2 * size], ordered[2 * size :])]


def judge(values: dict[str, Any]) -> list[str]:
    """What of the story is not as it should be."""
    found = []
    if values["most_pods"] > BUDGET_GPUS:
        found.append(f"{values['most_pods']} pods at a time, with a budget of {BUDGET_GPUS}")
    for name in LENGTHS:
        last = values[f"{name}_thirds"][-1]
        if last["failed"]:
            found.append(f"{last['failed']} of {last['requests']} requests failed in the last third of {name}")
    chat, summaries = values["for_chat"], values["for_summaries"]
    if not chat.get("decode", 0) > chat.get("prefill", 0):
        found.append(f"chat had {chat}")
    if not summaries.get("prefill", 0) > summaries.get("decode", 0):
        found.append(f"summaries had {summaries}")
    return found


def rebalance(options: DemoOptions, console: Console) -> int:
    """Runs the demo; returns its exit status."""
    with staged(options, console, logs="rebalance-logs", deploy=_deploy) as stage:
        target, lines = stage.target, stage.folder / "rebalance.jsonl"
        with (
            PodWatch(target, POOL_LABEL) as pods,
            RebalanceView(console) as view,
            traffic(target, traffic_objects(target.router_image()), lines) as flow,
        ):
            following = Following(target, flow, pods, view)
            values = tell(target, following, view)
            for following.state in flow:
                pass  # the answers that are still under way
            most = pods.most
    state = following.state
    end = state.end or {}
    values |= {"most_pods": most, "gpu_budget": BUDGET_GPUS, "requests": end.get("sent"), "failed": end.get("failed")}
    values |= {f"{name}_thirds": thirds(state.of(name)) for name in LENGTHS}
    values |= {"ready_s": round(stage.ready_s, 1), "took_s": round(stage.took_s(), 1), "rate_rps": RATE_RPS}
    return _conclude(values, stage.folder / "rebalance.json", console)


def _deploy(target: DemoTarget, progress: Progress) -> None:
    engines = [with_image(one, target.router_image()) for one in manifest("rebalance/engines.yaml")]
    serve(
        target,
        progress,
        [*engines, *manifest("rebalance/router.yaml")],
        what="two engines for prompts, two for answers, two routers",
        settings=["rebalance.enabled=true"],
        instances=BUDGET_GPUS,
        usually_s=15,
    )


def _conclude(values: dict[str, Any], path: Path, console: Console) -> int:
    write_summary(values, path)
    console.print()
    for split in values["splits"]:
        console.print(
            f"{split['at_s']:6.1f} s  prefill {split['prefill']}  decode {split['decode']}  ({split['traffic']})",
            markup=False,
        )
    for name in LENGTHS:
        parts = ", ".join(
            f"{one['within_slo']:.0%}" for one in values[f"{name}_thirds"] if one["within_slo"] is not None
        )
        console.print(f"{name}: within the SLO in its first, middle and last third: {parts}", markup=False)
    counts = f"{values['requests']} requests, {values['failed']} failed"
    console.print(f"{counts}; at most {values['most_pods']} pods at a time, of {BUDGET_GPUS} GPUs", markup=False)
    return verdict(judge(values), path, console)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parse_target("llmrouter.testbed.demo_rebalance", __doc__, arguments)
    return run_to_exit_status(lambda console: rebalance(options, console))


if __name__ == "__main__":
    sys.exit(main())
