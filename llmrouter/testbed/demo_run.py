"""What every demo on a Kubernetes does alike: it stands on a cluster, sends traffic, and takes away what it made."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.cluster.binaries import Binaries
from llmrouter.testbed.cluster.cluster import Cluster
from llmrouter.testbed.cluster.guard import Guard
from llmrouter.testbed.cluster.places import repository_root
from llmrouter.testbed.cluster.processes import poll, start
from llmrouter.testbed.cluster.progress import Progress
from llmrouter.testbed.demo_target import ENGINES, DemoTarget, ImageChoice
from llmrouter.testbed.replay_events import ReplayState, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from llmrouter.testbed.cluster.processes import Process

REPLAY_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Where the demo runs: a context of the user's kubeconfig, or ``None`` for a cluster of this machine."""

    context: str | None
    images: ImageChoice
    keep: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """A cluster on which all of a demo's parts serve, and the folder of what it writes."""

    target: DemoTarget
    folder: Path
    progress: Progress
    ready_s: float
    """Seconds from the start until every part served."""
    began_s: float

    def took_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began_s


@contextmanager
def staged(
    options: DemoOptions, console: Console, *, logs: str, deploy: Callable[[DemoTarget, Progress], None]
) -> Iterator[Stage]:
    """Opens the cluster and deploys there; afterwards collects logs below ``build/demo`` and takes all away again."""
    folder = repository_root() / "build" / "demo"
    shutil.rmtree(folder / logs, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    progress = Progress(lambda line: console.print(line, markup=False, soft_wrap=True))
    with ExitStack() as stack:
        target = open_target(options, progress, stack)
        stack.callback(_collect_logs, target, folder / logs, own=options.context is None)
        deploy(target, progress)
        yield Stage(target, folder, progress, time.monotonic() - began_s, began_s)


def open_target(options: DemoOptions, progress: Progress, stack: ExitStack) -> DemoTarget:
    """The existing cluster, or a new one of this machine; ``stack`` takes away what was made here."""
    if options.context is not None:
        return _open_context(options, options.context, progress, stack)
    owner = stack.enter_context(Guard())
    cluster = Cluster.up(progress)
    if options.keep:
        owner.keep()
    names = cluster.load_images(progress)
    access = ("--kubeconfig", str(cluster.kubeconfig))
    return DemoTarget(
        cluster.binaries["kubectl"],
        cluster.binaries["helm"],
        access,
        access,
        ImageChoice(**asdict(names)),
    )


def _open_context(options: DemoOptions, context: str, progress: Progress, stack: ExitStack) -> DemoTarget:
    programs = Binaries(progress=progress).provide(("kubectl", "helm"))
    access, helm_access = ("--context", context), ("--kube-context", context)
    target = DemoTarget(programs["kubectl"], programs["helm"], access, helm_access, options.images, shared=True)
    ours = not target.crds()
    with progress.part("remove what an earlier demo left"):
        target.uninstall()
    if not options.keep:
        if ours:
            stack.callback(target.remove_crds)
        stack.callback(target.uninstall)
    return target


def _collect_logs(target: DemoTarget, logs: Path, *, own: bool) -> None:
    target.collect_logs(logs)
    cluster = Cluster.current() if own else None
    if cluster is not None:
        shutil.copytree(cluster.logs, logs / "cluster", dirs_exist_ok=True, ignore=shutil.ignore_patterns("pods"))


def serve(
    target: DemoTarget,
    progress: Progress,
    documents: Sequence[Mapping[str, Any]],
    *,
    what: str,
    settings: Sequence[str] = (),
    instances: int = ENGINES,
    usually_s: float = 10,
) -> None:
    """Installs the release with these settings and applies the demo's objects; returns when every part serves."""
    operator = " with ".join(["operator", *settings])
    with progress.part(f"helm install: CRDs, {operator}, Redis, Envoy", usually_s=3):
        target.install(*settings)
    with progress.part(f"kubectl apply: {what}", usually_s=usually_s):
        target.apply(documents)
        target.wait_ready(instances=instances)
    with progress.part("Envoy finds the routers", usually_s=3):
        target.wait_front()


@contextmanager
def replaying(target: DemoTarget, documents: Sequence[Mapping[str, Any]], lines: Path) -> Iterator[Process]:
    """Applies the replay pod and what it needs; copies its log into ``lines`` until the block ends."""
    target.apply(documents)
    poll(
        lambda: target.get("pod", "demo-replay")["status"].get("phase") in {"Running", "Succeeded", "Failed"},
        within_s=REPLAY_START_TIMEOUT_S,
        what="the replay pod starts",
        every_s=0.3,
    )
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.unlink(missing_ok=True)
    log = start("replay", target.kubectl_words("logs", "--follow", "demo-replay"), log=lines)
    try:
        yield log
    finally:
        log.stop()


@contextmanager
def traffic(target: DemoTarget, documents: Sequence[Mapping[str, Any]], lines: Path) -> Iterator[Iterator[ReplayState]]:
    """Begins a replay; gives what it has said, again and again, until it ends."""
    with replaying(target, documents, lines) as log:
        yield _states(lines, log)


def _states(lines: Path, log: Process) -> Iterator[ReplayState]:
    state = ReplayState()
    for line in follow(lines, lambda: log.alive):
        if line is not None:
            state.feed(line)
        yield state


def target_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The options of every demo: where it runs."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--context", help="use this context of your kubeconfig instead of making a cluster")
    parser.add_argument("--operator-image", help="image of the operator, with --context (default: the chart's)")
    parser.add_argument("--router-image", help="image of routers, engines and replay, with --context (as above)")
    parser.add_argument("--redis-image", help="image of Redis, with --context (as above)")
    parser.add_argument("--envoy-image", help="image of Envoy, with --context (as above)")
    return parser


def target_options(options: argparse.Namespace) -> DemoOptions:
    """What they and ``DEMO_KEEP`` say."""
    images = ImageChoice(options.operator_image, options.router_image, options.redis_image, options.envoy_image)
    return DemoOptions(options.context, images, keep=os.environ.get("DEMO_KEEP", "") not in ("", "0"))


def parse_target(module: str, description: str | None, arguments: Sequence[str] | None) -> DemoOptions:
    """Reads the command line of a demo that has no options but these."""
    return target_options(target_parser(module, description).parse_args(arguments))
