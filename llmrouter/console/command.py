"""The commands of ``kubectl llmrouter``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.console import Console
from rich.live import Live

from llmrouter.console.kubectl import Kubectl, KubectlError
from llmrouter.console.routers import Sight, read_sight
from llmrouter.console.status_view import detail, overview
from llmrouter.console.top_view import Looked, top
from llmrouter.decisions.record import parse_line
from llmrouter.errors import InvalidInputError
from llmrouter.replay.explain_view import plain, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmrouter.decisions.record import DecisionRecord

KIND = "llmrouters.llmrouter.dev"
ROUTER_LABEL = "llmrouter.dev/router"
METRICS_PORT = 9090
BAD_INPUT, FAILED = 2, 1
MAX_EVENTS = 8
PIPED_CHARACTERS = 200
"""Of a line that no terminal bounds."""
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.5, 3600.0


def parser() -> argparse.ArgumentParser:
    """Commands and options."""
    top_level = argparse.ArgumentParser(
        prog="kubectl llmrouter",
        description="Shows what LLMRouters do: with your own rights, through kubectl.",
        epilog="top, explain and the held requests of status need the right to get pods/proxy.",
    )
    commands = top_level.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="conditions, policy arms, pools, mix, and what comes next")
    status.add_argument("name", nargs="?", help="an LLMRouter (default: a line for each)")
    status.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    status.add_argument("--json", action="store_true", help="for machines")
    loads = commands.add_parser("top", help="loads and speed of routers and instances, now")
    loads.add_argument("name", help="an LLMRouter")
    loads.add_argument("-w", "--watch", action="store_true", help="until interrupted")
    loads.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
    loads.add_argument("--json", action="store_true", help="for machines")
    explain = commands.add_parser("explain", help="one decision in words, where the decision log sampled it")
    explain.add_argument("request_id", metavar="REQUEST_ID", help="as the router's answer names it")
    explain.add_argument("--router", metavar="NAME", help="an LLMRouter (default: all of the namespace)")
    explain.add_argument("--json", action="store_true", help="the record itself")
    for command in (status, loads, explain):
        _add_kubectl_options(command)
    return top_level


def _add_kubectl_options(command: argparse.ArgumentParser) -> None:
    options = command.add_argument_group("as of kubectl")
    options.add_argument("-n", "--namespace")
    options.add_argument("--context")
    options.add_argument("--kubeconfig")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 2 with one line on bad input, 1 where the cluster does not answer."""
    options = parser().parse_args(arguments)
    words = [
        f"--{name}={value}"
        for name in ("namespace", "context", "kubeconfig")
        if (value := getattr(options, name)) is not None
    ]
    desk = Desk(Kubectl(words), Console(width=None if sys.stdout.isatty() else PIPED_CHARACTERS))
    try:
        return {"status": desk.status, "top": desk.top, "explain": desk.explain}[options.command](options)
    except InvalidInputError as error:
        print(f"kubectl llmrouter {options.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KubectlError as error:
        print(f"kubectl llmrouter {options.command}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 0


@dataclass(frozen=True, slots=True)
class Desk:
    """Answers what is asked, through one kubectl, on one console."""

    kubectl: Kubectl
    console: Console

    def status(self, options: argparse.Namespace) -> int:
        """``kubectl llmrouter status``."""
        now = datetime.now(tz=UTC)
        if options.name is None:
            words = [KIND, *(["--all-namespaces"] if options.all_namespaces else [])]
            found = self.kubectl.get(*words)["items"]
            self._say(found, options, None if options.json else overview(found, now))
            if not found and not options.json:
                print("No LLMRouters found.", file=sys.stderr)
            return 0
        if options.all_namespaces:
            raise InvalidInputError("--all-namespaces: goes without a name")
        router = self.kubectl.get(KIND, options.name)
        sights, _ = self._look(router, quick=True)
        held = [one for sight in sights if (one := sight.total("held_requests")) is not None]
        waiting = sum(held) if held else None
        view = detail(router, now, held=waiting, events=self._events(router))
        self._say({"llmrouter": router, "held": waiting}, options, view)
        return 0

    def top(self, options: argparse.Namespace) -> int:
        """``kubectl llmrouter top``: two looks, since rates take two; with --watch on and on."""
        if not MIN_INTERVAL_S <= options.interval <= MAX_INTERVAL_S:
            raise InvalidInputError(f"--interval: must be within {MIN_INTERVAL_S:g} and {MAX_INTERVAL_S:g} seconds")
        router = self.kubectl.get(KIND, options.name)
        looks = self._looks(router, options.interval)
        if not options.watch:
            next(looks)
            looked = next(looks)
            self._say(_as_json(looked), options, top(options.name, looked))
            return 0
        with Live(console=self.console, screen=not options.json, auto_refresh=False) as live:
            for looked in looks:
                if options.json:
                    print(json.dumps(_as_json(looked)), flush=True)
                else:
                    live.update(top(options.name, looked), refresh=True)
        return 0

    def explain(self, options: argparse.Namespace) -> int:
        """``kubectl llmrouter explain``."""
        record = self._find_record(options)
        if options.json:
            print(json.dumps(plain(record), indent=2))
        else:
            show(record, self.console)
        return 0

    def _find_record(self, options: argparse.Namespace) -> DecisionRecord:
        routers = [self.kubectl.get(KIND, options.router)] if options.router else self.kubectl.get(KIND)["items"]
        silent: list[str] = []
        for router in routers:
            for pod in self._pods(router):
                path = f"decisions/{quote(options.request_id, safe='')}"
                try:
                    return parse_line(self.kubectl.of_pod(pod, _metrics_port(router), path).encode())
                except (KubectlError, InvalidInputError) as error:
                    silent.append(f"{pod['metadata']['name']}: {error}")
        raise KubectlError(
            f"no router has a record of {options.request_id!r}: spec.decisionLog.fraction of requests are sampled, "
            f"and routers keep the last of those" + "".join(f"\n  {one}" for one in silent[:MAX_EVENTS])
        )

    def _looks(self, router: dict[str, Any], interval_s: float) -> Iterator[Looked]:
        before: dict[str, Sight] = {}
        while True:
            sights, silent = self._look(router)
            yield Looked(before, sights, silent)
            before = {one.router: one for one in sights}
            time.sleep(interval_s)

    def _look(self, router: dict[str, Any], *, quick: bool = False) -> tuple[list[Sight], dict[str, str]]:
        """What each router says now, and who did not answer; ``quick`` gives up at the first that does not."""
        sights: list[Sight] = []
        silent: dict[str, str] = {}
        for pod in self._pods(router):
            name = pod["metadata"]["name"]
            try:
                text = self.kubectl.of_pod(pod, _metrics_port(router), "metrics")
                sights.append(read_sight(name, text, time.monotonic()))
            except (KubectlError, ValueError) as error:
                silent[name] = str(error)
                if quick:
                    break
        return sights, silent

    def _pods(self, router: dict[str, Any]) -> list[dict[str, Any]]:
        metadata = router["metadata"]
        label = f"--selector={ROUTER_LABEL}={metadata['name']}"
        pods: list[dict[str, Any]] = self.kubectl.get("pods", f"--namespace={metadata['namespace']}", label)["items"]
        return [one for one in pods if (one.get("status") or {}).get("phase") == "Running"]

    def _events(self, router: dict[str, Any]) -> list[dict[str, Any]]:
        metadata = router["metadata"]
        of_this = f"--field-selector=involvedObject.kind=LLMRouter,involvedObject.name={metadata['name']}"
        found = self.kubectl.get("events", f"--namespace={metadata['namespace']}", of_this)["items"]
        return sorted(found, key=_last_seen, reverse=True)[:MAX_EVENTS]

    def _say(self, value: object, options: argparse.Namespace, view: Any) -> None:  # noqa: ANN401 - whatever rich shows
        if options.json:
            print(json.dumps(value, indent=2))
        else:
            self.console.print(view)


def _last_seen(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event["metadata"].get("creationTimestamp") or "")


def _metrics_port(router: dict[str, Any]) -> int:
    return int((router["spec"].get("listeners") or {}).get("metricsPort", METRICS_PORT))


def _as_json(looked: Looked) -> dict[str, Any]:
    return {
        "routers": {
            one.router: [
                {"name": name, "labels": dict(labels), "value": value} for (name, labels), value in one.values.items()
            ]
            for one in looked.now
        },
        "silent": dict(looked.silent),
    }
