"""Pools of engines on a real API server, with a test in the place of kubelet and routers.

Controllers are real: they make pods of Deployments and StatefulSets, and choose which of them end.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from support.operator_process import Object, llm_router
from support.played_routers import acknowledgement, config_of, router_pods

from llmrouter.acknowledgement import RouterMix
from llmrouter.lengths.distribution import LEVELS
from llmrouter.testbed.cluster.api import ApiError
from llmrouter_operator.scaling_view import DRAINING_ANNOTATION, is_ready

if TYPE_CHECKING:
    from support.operator_process import Space

PROFILE = {"name": "llama-3.1-8b-rtx4090"}
SLO = {"ttftSeconds": 1.0, "tpotSeconds": 0.1, "attainment": 0.9}
QUICK = {"stabilizationSeconds": 1, "cooldownSeconds": 0, "drainSeconds": 60, "progressDeadlineSeconds": 30}


def mix_of(requests_per_s: float, prompt_tokens: float, output_tokens: float) -> RouterMix:
    """What one router says of lengths that are lognormal with these medians."""
    spread = [statistics.NormalDist(0.0, 0.5).inv_cdf(level) for level in LEVELS]
    prompts, outputs = ([tokens * 2.718281828**z for z in spread] for tokens in (prompt_tokens, output_tokens))
    mean_prompt, mean_output = 1.13 * prompt_tokens, 1.13 * output_tokens
    return RouterMix(
        requests=60.0 * requests_per_s,
        requests_per_s=requests_per_s,
        prefill_tokens_per_s=requests_per_s * mean_prompt,
        decode_tokens_per_s=requests_per_s * mean_output,
        engine_s_per_s=1.0,
        prefill_time_fraction=0.5,
        prefill_squared_per_s=requests_per_s * 1.28 * mean_prompt**2,
        context_tokens_per_s=requests_per_s * mean_output * (mean_prompt + mean_output),
        prompt_tokens=tuple(prompts),
        output_tokens=tuple(outputs),
    )


CHAT = mix_of(16.0, 200.0, 250.0)
"""Of six engines, one computes prompts and two decode."""

SUMMARIES = mix_of(4.0, 3000.0, 60.0)
"""Of six engines, five compute prompts and one decodes."""


def fleet_spec(kind: str = "Deployment", **rebalance: object) -> Object:
    """An LLMRouter over the pools ``prefill`` and ``decode``, with six GPUs."""
    pools = [
        {
            "name": role.lower(),
            "role": role,
            "selector": {"matchLabels": {"app": role.lower()}},
            "profile": PROFILE,
            "scaleTargetRef": {"kind": kind, "name": role.lower()},
            "gpusPerReplica": 1,
        }
        for role in ("Prefill", "Decode")
    ]
    return llm_router("fleet", pools=pools, rebalance={"mode": "Auto", "gpuBudget": 6, "slo": SLO} | QUICK | rebalance)


def workload(name: str, replicas: int, kind: str = "Deployment") -> Object:
    """Pods that a namespace of the restricted profile takes, on a node that the test plays."""
    container = {
        "name": "engine",
        "image": "example.test/engine:1",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "nodeName": "played",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    spec: Object = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
    }
    if kind == "StatefulSet":
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@dataclass
class PlayedEngines:
    """The kubelet of the pools' pods, and the routers: both say what the test wants them to.

    ``in_flight`` is what routers say of every draining pod; of each pool in ``most_ready`` no more pods get ready; one
    that is deleted lingers for a moment. ``most_pods`` is the largest number that were there at a time.
    """

    space: Space
    mix: RouterMix | None = SUMMARIES
    in_flight: int = 0
    most_ready: dict[str, int] = field(default_factory=dict)
    most_pods: int = 0
    drained: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def pods(self) -> list[Object]:
        """Pods of all pools, ending ones too."""
        return self.space.find("Pod", "?labelSelector=app%20in%20(prefill,decode)")

    def _play(self) -> None:
        while not self._stop.wait(0.2):
            try:
                pods = self.pods()
                self.most_pods = max(self.most_pods, len(pods))
                ready = Counter(pod["metadata"]["labels"]["app"] for pod in pods if is_ready(pod))
                for pod in pods:
                    self._tend(pod, ready)
                self._say([pod["metadata"]["name"] for pod in pods if _drains(pod)])
            except ApiError as error:
                if error.status not in {404, 409}:  # it went, or changed, between two calls
                    raise

    def _tend(self, pod: Object, ready: Counter[str]) -> None:
        metadata = pod["metadata"]
        app = metadata["labels"]["app"]
        if _drains(pod):
            self.drained.add(metadata["name"])
        if "deletionTimestamp" in metadata:
            self.gone.add(metadata["name"])
            path = self.space.path("Pod", metadata["name"])
            self.space.api.call("DELETE", f"{path}?gracePeriodSeconds=0")
        elif not any(one["type"] == "Ready" for one in (pod.get("status") or {}).get("conditions") or []):
            works = ready[app] < self.most_ready.get(app, ready[app] + 1)
            ready[app] += works
            self._show(pod, ready=works)

    def _show(self, pod: Object, *, ready: bool) -> None:
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        told = {"type": "Ready", "status": "True" if ready else "False"}
        container = {"name": "engine", "ready": ready, "restartCount": 0, "image": "", "imageID": ""}
        status: Object = {"phase": "Running" if ready else "Pending", "conditions": [told], "podIP": "10.0.0.1"}
        status["containerStatuses"] = [container | ({} if ready else {"state": waiting})]
        self.space.patch("Pod", pod["metadata"]["name"], {"status": status}, "/status")

    def _say(self, draining: list[str]) -> None:
        routers = router_pods(self.space)
        if not routers or not self.space.exists("ConfigMap", "fleet-routers"):
            return
        digest, config = config_of(self.space)
        mixes = {} if self.mix is None else {"llama": self.mix}
        said = dict.fromkeys(draining, self.in_flight)
        data = {
            pod: acknowledgement(pod, digest, config, mixes=mixes, draining=said, at_s=time.time()) for pod in routers
        }
        self.space.patch("ConfigMap", "fleet-routers", {"data": data})


def _drains(pod: Object) -> bool:
    return DRAINING_ANNOTATION in (pod["metadata"].get("annotations") or {})
