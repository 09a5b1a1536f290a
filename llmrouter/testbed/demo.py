"""The demo: a real Kubernetes, the chart, real traffic on simulated engines, a policy switched with kubectl apply."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.comparison import DISTURBED, MODEL, SWITCH, Facts, Timing, summary
from llmrouter.testbed.comparison_run import conclude, run_to_exit_status, watch_replay
from llmrouter.testbed.demo_run import replaying, serve, staged, target_options, target_parser
from llmrouter.testbed.demo_target import RELEASE, engines, manifest, replay_pod
from llmrouter.testbed.live_view import LiveView

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from rich.console import Console

    from llmrouter.testbed.cluster.progress import Progress
    from llmrouter.testbed.demo_run import DemoOptions
    from llmrouter.testbed.demo_target import DemoTarget, Switch
    from llmrouter.testbed.replay_events import ReplayState

TIMING = Timing(window_s=50.0, disturbed_s=20.0)
MIN_WINDOW_S, MAX_WINDOW_S = 5.0, 200.0
KILL_AFTER_S = 4.0


@dataclass(frozen=True, slots=True)
class Kill:
    """A router pod that was killed, and how long its replacement took to acknowledge the policy.

    ``crashed`` says whether its process was killed outright, which only a pod of this machine can be.
    """

    pod: str
    crashed: bool
    replacement_acknowledged_s: float


class Actions:
    """What happens beside the traffic, each when its stretch begins."""

    def __init__(self, target: DemoTarget, executor: ThreadPoolExecutor, view: LiveView) -> None:
        self._target = target
        self._executor = executor
        self._view = view
        self.switch: Future[Switch] | None = None
        self.kill: Future[Kill] | None = None

    def on_stretch(self, name: str) -> None:
        """Starts the action of a stretch, if it has one."""
        if name == SWITCH:
            self._view.say("kubectl apply: RoutingPolicy demo becomes the ONNX policy, while traffic flows")
            self.switch = self._executor.submit(self._target.switch_policy, "marginal-cost")
        elif name == DISTURBED:
            self.kill = self._executor.submit(self._kill_router)

    def _kill_router(self) -> Kill:
        time.sleep(KILL_AFTER_S)
        pod = self._target.router_pods()[0]
        name = pod["metadata"]["name"]
        self._view.say(f"killing router {name}, while traffic flows")
        began_s = time.monotonic()
        crashed = kill_processes(pod["metadata"]["uid"]) > 0
        self._target.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
        self._target.wait_replaced(name)
        return Kill(name, crashed, time.monotonic() - began_s)


def kill_processes(pod_uid: str) -> int:
    """SIGKILLs the router in a pod, if the pod runs on this machine: a crash, which no drain softens."""
    killed = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            mine = pod_uid in (entry / "cgroup").read_text() and b"router_grpc" in (entry / "cmdline").read_bytes()
            if mine:
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
        except OSError:  # it ended while it was looked at
            continue
    return killed


def replay(target: DemoTarget, timing: Timing, folder: Path, view: LiveView) -> tuple[ReplayState, Actions]:
    """Runs the replay pod to its end, switching the policy and killing a router at their times."""
    pod = replay_pod(target.router_image(), timing.replay_arguments())
    lines = folder / "replay.jsonl"
    with replaying(target, [pod], lines) as log, ThreadPoolExecutor(2) as executor:
        actions = Actions(target, executor, view)
        state = watch_replay(lines, alive=lambda: log.alive, view=view, on_stretch=actions.on_stretch)
    return state, actions


def deploy(target: DemoTarget, progress: Progress) -> None:
    """Installs the release and applies the demo's objects; returns when every part serves."""
    objects = [*manifest("policies/round-robin.yaml"), *manifest("cluster/router.yaml")]
    what = "eight engines, a policy, two routers"
    serve(target, progress, [*engines(target.router_image()), *objects], what=what)


def compare(options: DemoOptions, timing: Timing, console: Console) -> int:
    """Runs the demo; returns its exit status."""
    with staged(options, console, logs="logs", deploy=deploy) as stage:
        stage.progress.note(f"LLMRouter demo is Ready, {stage.ready_s:.0f} s after the start")
        with LiveView("make demo", console) as view:
            state, actions = replay(stage.target, timing, stage.folder, view)
        values = _values(state, actions, stage.ready_s)
        status = conclude(values, stage.folder / "summary.json", console)
        console.print(f"logs: {stage.folder / 'logs'}", soft_wrap=True)
        _say_next(options, stage.target, console)
    return status


def _values(state: ReplayState, actions: Actions, ready_s: float) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if actions.kill is not None:
        kill, outcomes = actions.kill.result(), state.of(DISTURBED)
        more["router_kill"] = {
            "pod": kill.pod,
            "crashed": kill.crashed,
            "requests": len(outcomes),
            "failed": sum(outcome.failed for outcome in outcomes),
            "retries": sum(outcome.retries for outcome in outcomes),
            "replacement_acknowledged_s": round(kill.replacement_acknowledged_s, 3),
        }
    switched = actions.switch.result() if actions.switch is not None else None
    if switched is not None:
        more["kubectl_apply_s"] = round(switched.kubectl_apply_s, 3)
    return summary(state, Facts(ready_s, switched.apply_to_acknowledged_s if switched else None, more))


def _say_next(options: DemoOptions, target: DemoTarget, console: Console) -> None:
    lines = ["next: DEMO_KEEP=1 make demo leaves it up to play with; make demo-standalone needs no Kubernetes"]
    if options.keep:
        export = [f"  export KUBECONFIG={target.access[1]}"] if options.context is None else []
        lines = [
            "it stays up; next:",
            *export,
            f"  kubectl -n {target.namespace} get llmr,rpol,pods",
            f"  kubectl -n {target.namespace} describe llmr demo",
            f"  kubectl -n {target.namespace} edit rpol demo",
            f"  kubectl -n {target.namespace} port-forward service/{RELEASE}-front 8080:80 &",
            "  curl localhost:8080/v1/completions -H 'content-type: application/json' \\",
            f"""    -d '{{"model": "{MODEL}", "prompt": "Once upon a time", "max_tokens": 20}}'""",
            "  make demo-down" if options.context is None else f"  kubectl delete namespace {target.namespace}",
        ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def parse(arguments: Sequence[str] | None) -> tuple[DemoOptions, Timing]:
    """Reads the command line and ``DEMO_KEEP``."""
    parser = target_parser("llmrouter.testbed.demo", __doc__)
    parser.add_argument(
        "--window", type=float, default=TIMING.window_s, help="seconds of a phase (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.window) and MIN_WINDOW_S <= options.window <= MAX_WINDOW_S):
        parser.error(f"--window must be {MIN_WINDOW_S:g} to {MAX_WINDOW_S:g}, not {options.window:g}")
    return target_options(options), Timing(window_s=options.window, disturbed_s=TIMING.disturbed_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options, timing = parse(arguments)
    return run_to_exit_status(lambda console: compare(options, timing, console))


if __name__ == "__main__":
    sys.exit(main())
