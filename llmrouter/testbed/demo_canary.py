"""The life of a policy on a real Kubernetes: shadow, canary, rolled back by its guardrails; another one, promoted."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.cluster.errors import PartFailedError
from llmrouter.testbed.cluster.processes import poll
from llmrouter.testbed.comparison import MODEL, write_summary
from llmrouter.testbed.comparison_run import run_to_exit_status, verdict
from llmrouter.testbed.demo_canary_model import objects
from llmrouter.testbed.demo_canary_view import EVENTS, SECTION, CanaryView
from llmrouter.testbed.demo_run import parse_target, serve, staged, traffic
from llmrouter.testbed.demo_target import ROUTER, engines, is_all, manifest, replay_pod
from llmrouter.testbed.terminal_view import excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from llmrouter.testbed.cluster.progress import Progress
    from llmrouter.testbed.demo_run import DemoOptions
    from llmrouter.testbed.demo_target import DemoTarget
    from llmrouter.testbed.replay_events import ReplayState

RATE_RPS = 8.0
TRAFFIC_S = 400.0
"""Longer than the story takes: the client is stopped when it is told."""
SHADOW_S = 12.0
WORSE, GOOD = "sign-error", "by-formula"
"""A model of one's own that any check of it takes for good, and the formula that the current model was made from."""
GUARDRAILS = {
    "maxTtftRatio": 2,
    "maxTpotRatio": 1.3,
    "maxE2eRatio": 1.3,
    "maxErrorFractionIncrease": 0.1,
    "falseAlarmProbability": 0.05,
}
"""Wide ones, so that the story takes minutes and not an afternoon: docs/rollout.md says what narrow ones take."""
ROLLED_BACK_WITHIN_S, PROMOTED_WITHIN_S = 90.0, 180.0
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person would apply."""

    policy: str
    mode: str
    promote: bool = False

    def spec(self) -> dict[str, Any]:
        """As a merge patch of the LLMRouter's spec."""
        auto = {"enabled": self.promote, "afterSeconds": 10, "minRequests": 100}
        one = {"policyRef": {"name": self.policy}, "mode": self.mode, "percent": 50, "guardrails": GUARDRAILS}
        return {"candidate": {**one, "autoPromote": auto}}


@dataclass
class Story:
    """What happened, in seconds since each wish was applied."""

    summary: dict[str, Any] = field(default_factory=dict)
    shortcomings: list[str] = field(default_factory=list)


class Trial:
    """Follows one candidate by what ``kubectl get`` shows, while traffic flows."""

    def __init__(self, target: DemoTarget, traffic: Iterator[ReplayState], view: CanaryView) -> None:
        self._target = target
        self._traffic = traffic
        self._view = view
        self._began_s = 0.0
        self._name: str | None = None
        self.phases: dict[str, float] = {}

    def wish(self, spec: dict[str, Any]) -> None:
        """``kubectl patch``."""
        patch = json.dumps({"spec": spec})
        self._name = ((spec.get("candidate") or {}).get("policyRef") or {}).get("name")
        self._began_s, self.phases = time.monotonic(), {}
        self._target.kubectl("patch", "llmrouter", ROUTER, "--type", "merge", "--patch", patch)

    def until(self, phase: str, *, within_s: float) -> dict[str, Any]:
        """``status.candidate`` once it is in that phase; raises PartFailedError where it does not get there."""
        for said in self._looks():
            if said.get("phase") == phase:
                return said
            if time.monotonic() - self._began_s > within_s:
                raise PartFailedError(f"the candidate is not {phase} within {within_s:g} s: {json.dumps(said)}")
        raise PartFailedError("the traffic ended before the story did")

    def go_on(self, seconds: float) -> dict[str, Any]:
        """``status.candidate`` after so long."""
        ends_s = time.monotonic() + seconds
        return next((said for said in self._looks() if time.monotonic() >= ends_s), {})

    def _looks(self) -> Iterator[dict[str, Any]]:
        """``status.candidate`` every second, for as long as there is traffic."""
        look_at_s = 0.0
        for state in self._traffic:
            if time.monotonic() < look_at_s:
                continue
            status = self._target.status()
            said: dict[str, Any] = status.get("candidate") or {}
            now_s = time.monotonic()
            look_at_s = now_s + LOOK_EVERY_S
            if said.get("name") != self._name:
                continue
            self.phases.setdefault(str(said.get("phase")), now_s - self._began_s)
            self._view.show(status, state)
            yield said

    def settled(self, decides: Callable[[dict[str, Any]], bool], what: str, *, within_s: float = 30.0) -> float:
        """Seconds since the wish until every router runs what ``decides`` knows as right."""
        poll(lambda: decides(self._target.status()), within_s=within_s, what=what, every_s=0.3)
        return time.monotonic() - self._began_s


def tell(target: DemoTarget, trial: Trial, view: CanaryView, story: Story) -> None:
    """The story, from the first wish to the spec that takes the promoted policy over."""
    values = story.summary
    view.chapter(f"1. Shadow: {WORSE} (costs of the wrong sign) is only asked")
    trial.wish(Wish(WORSE, "Shadow").spec())
    trial.until("Shadowing", within_s=60.0)
    said = trial.go_on(SHADOW_S)
    values["shadow"] = {"shadowing_after_s": _s(trial.phases["Shadowing"]), **said.get("shadow", {})}
    view.describe(excerpt(target.kubectl("describe", "llmrouter", ROUTER), SECTION, EVENTS))

    view.chapter(f"2. Canary: {WORSE} decides for every second request")
    trial.wish(Wish(WORSE, "Canary").spec())
    said = trial.until("RolledBack", within_s=ROLLED_BACK_WITHIN_S)
    gone_s = trial.settled(lambda status: _all_run(status, "demo"), "every router without the candidate")
    values["rollback"] = _told(said, trial) | {"told_to_all_after_s": _s(gone_s)}
    view.describe(excerpt(target.kubectl("describe", "llmrouter", ROUTER), SECTION, EVENTS))

    view.chapter(f"3. Canary: {GOOD}, with autoPromote")
    trial.wish(Wish(GOOD, "Canary", promote=True).spec())
    said = trial.until("Promoted", within_s=PROMOTED_WITHIN_S)
    all_s = trial.settled(lambda status: _all_run(status, GOOD), f"every router with {GOOD}")
    values["promotion"] = _told(said, trial) | {"serves_all_after_s": _s(all_s)}
    view.describe(excerpt(target.kubectl("describe", "llmrouter", ROUTER), SECTION, EVENTS))

    view.chapter(f"4. The spec follows: policyRef becomes {GOOD}")
    trial.wish({"policyRef": {"name": GOOD}, "candidate": None})
    over_s = trial.settled(lambda status: "candidate" not in status and _all_run(status, GOOD), "the spec is in force")
    values["spec_in_force_after_s"] = _s(over_s)
    view.describe(excerpt(target.kubectl("describe", "llmrouter", ROUTER), SECTION, EVENTS))


def judge(story: Story) -> None:
    """What of the story is not as it should be."""
    found, values = story.shortcomings, story.summary
    if values["failed"]:
        found.append(f"{values['failed']} of {values['requests']} requests failed")
    if values["rollback"]["told_to_all_after_s"] - values["rollback"]["rolled_back_after_s"] > 30.0:  # noqa: PLR2004
        found.append("routers went on with a candidate for more than 30 s after it was rolled back")
    if values["rollback"]["reason"] not in {"TtftWorse", "TpotWorse", "E2eWorse"}:
        found.append(f"{WORSE} was rolled back for {values['rollback']['reason']}")


def replay(image: str) -> dict[str, Any]:
    """The pod that sends the traffic."""
    stretch = f"traffic:0:{TRAFFIC_S:g}"
    return replay_pod(image, ["--model", MODEL, "--rate", f"{RATE_RPS:g}", "--json", "--stretch", stretch])


def canary(options: DemoOptions, console: Console) -> int:
    """Runs the demo; returns its exit status."""
    story = Story()
    with staged(options, console, logs="canary-logs", deploy=_deploy) as stage:
        pod, lines = replay(stage.target.router_image()), stage.folder / "canary.jsonl"
        with traffic(stage.target, [pod], lines) as flow, CanaryView(console) as view:
            tell(stage.target, Trial(stage.target, flow, view), view, story)
            counts = next(flow).progress
        story.summary |= {"requests": counts["sent"], "failed": counts["failed"], "retries": counts["retries"]}
    story.summary |= {"ready_s": _s(stage.ready_s), "took_s": _s(stage.took_s()), "rate_rps": RATE_RPS}
    story.summary["guardrails"] = GUARDRAILS
    judge(story)
    return _conclude(story, stage.folder / "canary.json", console)


def _deploy(target: DemoTarget, progress: Progress) -> None:
    ours = [*manifest("canary/policies.yaml"), *objects(WORSE), *manifest("cluster/router.yaml")]
    what = "eight engines, three policies, a model, two routers"
    serve(target, progress, [*engines(target.router_image()), *ours], what=what)


def _conclude(story: Story, path: Path, console: Console) -> int:
    write_summary(story.summary, path)
    back, forth = story.summary["rollback"], story.summary["promotion"]
    worse, good = (one["requests"]["candidate"] for one in (back, forth))
    where = f"after {worse} of its requests; every router without it at {back['told_to_all_after_s']:g} s"
    for line in (
        f"{WORSE}: rolled back {back['rolled_back_after_s']:g} s after kubectl patch ({back['reason']}), {where}",
        f"{GOOD}: promoted {forth['promoted_after_s']:g} s after kubectl patch, after {good} of its requests",
        f"{story.summary['requests']} requests, {story.summary['failed']} failed, at {RATE_RPS:g} requests a second",
    ):
        console.print(line, markup=False, soft_wrap=True)
    return verdict(story.shortcomings, path, console)


def _told(said: dict[str, Any], trial: Trial) -> dict[str, Any]:
    word = "rolled_back" if said["phase"] == "RolledBack" else "promoted"
    return {
        "reason": said["reason"],
        "message": said["message"],
        "running_after_s": _s(trial.phases["Running"]) if "Running" in trial.phases else None,
        f"{word}_after_s": _s(trial.phases[said["phase"]]),
        "requests": {one["arm"]: one["requests"] for one in said.get("arms", ())},
        "arms": said.get("arms", []),
        "comparisons": said.get("comparisons", []),
    }


def _all_run(status: dict[str, Any], policy: str) -> bool:
    active = status.get("activePolicy") or {}
    return active.get("name") == policy and is_all(str(active.get("acknowledged", "")))


def _s(seconds: float) -> float:
    return round(seconds, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    options = parse_target("llmrouter.testbed.demo_canary", __doc__, arguments)
    return run_to_exit_status(lambda console: canary(options, console))


if __name__ == "__main__":
    sys.exit(main())
