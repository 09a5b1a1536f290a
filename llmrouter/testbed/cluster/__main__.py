"""The one-machine cluster by hand: `python -m llmrouter.testbed.cluster up|down|status|build`."""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict

from llmrouter.testbed.cluster import guard
from llmrouter.testbed.cluster.binaries import CONTROL_PLANE, NODE, Binaries
from llmrouter.testbed.cluster.cluster import Cluster, down
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.images import image_names
from llmrouter.testbed.cluster.progress import Progress, silent


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 if a part failed, 2 on bad input or an unsuitable machine."""
    options = _parser().parse_args(arguments)
    guard.end_on_signals()
    progress = Progress(lambda line: print(line, file=sys.stderr, flush=True))
    try:
        return int(options.run(options, progress))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmrouter.testbed.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace, Progress], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    up = command("up", _up, "bring a fresh cluster up and leave it running (root)")
    up.add_argument("--no-images", action="store_true", help="do not build and load the project's images")
    command("down", _down, "take the cluster down and remove everything it made")
    command("load", _load, "build the images again where a source changed and load them into the running cluster")
    status = command("status", _status, "say whether a cluster runs, and where its kubeconfig and logs are")
    status.add_argument("--json", action="store_true", help="print it for machines")
    build = command("build", _build, "build the programs that are not on the machine yet; no root needed")
    build.add_argument("--control-plane", action="store_true", help="only what the tests without root need")
    command("guard", _guard, "take the cluster down when standard input closes (used by runs that own one)")
    return parser


def _up(options: argparse.Namespace, progress: Progress) -> int:
    with guard.Guard() as owner:
        cluster = Cluster.up(progress, images=not options.no_images)
        owner.keep()
    progress.note(f"the cluster is up: export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _down(_options: argparse.Namespace, progress: Progress) -> int:
    down(progress)
    return 0


def _load(_options: argparse.Namespace, progress: Progress) -> int:
    cluster = Cluster.current()
    if cluster is None:
        raise ClusterError("no cluster runs: bring one up with `python -m llmrouter.testbed.cluster up`")
    names = cluster.load_images(progress)
    print("\n".join(names.all()))
    return 0


def _status(options: argparse.Namespace, _progress: Progress) -> int:
    cluster = Cluster.current()
    names = image_names()
    known = {
        "running": cluster is not None,
        "kubeconfig": str(cluster.kubeconfig) if cluster else None,
        "logs": str(cluster.logs) if cluster else None,
        "images": asdict(names),
    }
    if options.json:
        print(json.dumps(known, indent=2))
    elif cluster:
        print(f"running: KUBECONFIG={cluster.kubeconfig}, logs in {cluster.logs}")
    else:
        print("no cluster runs")
    return 0 if cluster else 1


def _build(options: argparse.Namespace, progress: Progress) -> int:
    found = Binaries(progress=progress).provide(CONTROL_PLANE if options.control_plane else NODE)
    print("\n".join(f"{name}: {path}" for name, path in found.items()))
    return 0


def _guard(_options: argparse.Namespace, _progress: Progress) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if guard.owner_has_ended_and_left_it():
        down(silent())
    return 0


if __name__ == "__main__":
    sys.exit(main())
