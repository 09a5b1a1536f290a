"""``llmrouter epp-conformance --target HOST:PORT``: puts every case to a picker and says what it did."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import grpc.aio
from rich.console import Console
from rich.table import Table

from llmrouter.testbed.epp.cases import CASES
from llmrouter.testbed.epp.stream import Deviation, Target, said
from llmrouter.testbed.epp.trust import tunnel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.testbed.epp.case import Case

OPTIONS = (("grpc.max_receive_message_length", 64 * 1024 * 1024),)

NEEDS = {
    "serving": ("target", "a picker with ready instances"),
    "health": ("health", "its health service, in plain text, where that has a port of its own"),
    "empty": ("empty-target", "a picker without any instance"),
    "full": ("full-target", "a picker whose instances take no more"),
    "one": ("one-target", "a picker whose instances take one request altogether"),
    "second": ("second-target", "another picker of the same instances as --one-target"),
    "stages": ("stages-target", "a picker whose instances do one stage each, prefill or decode"),
    "tls": ("tls-target", "a picker that speaks TLS, whatever its certificate"),
    "drain": ("drain-command", "a command that has --target stop, for the last case"),
}
"""What each case may need, by the option that gives it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a case: ``passed``, ``failed`` or ``skipped``, and why."""

    case: str
    outcome: str
    detail: str = ""


async def judge(case: Case, targets: Mapping[str, Target]) -> Verdict:
    """Puts one case to the target that it needs."""
    target = targets.get(case.needs)
    if target is None:
        return Verdict(case.name, "skipped", f"--{NEEDS[case.needs][0]} is not given")
    try:
        await asyncio.wait_for(case.run(target), 10 * target.answer_s)
    except Deviation as deviation:
        return Verdict(case.name, "failed", str(deviation))
    except (grpc.aio.AioRpcError, OSError, TimeoutError) as error:
        return Verdict(case.name, "failed", said(error))
    return Verdict(case.name, "passed")


async def judge_all(given: argparse.Namespace) -> list[Verdict]:
    """All cases, one after the other."""
    addresses = {name: address for name, (option, _) in NEEDS.items() if (address := _option(given, option))}
    command = addresses.pop("drain", "")
    async with AsyncExitStack() as stack:
        channels = {}
        for name, address in addresses.items():
            is_tls = name == "tls" or (given.tls and name != "health")
            reached = await stack.enter_async_context(tunnel(address)) if is_tls else address
            channels[name] = grpc.aio.insecure_channel(reached, options=OPTIONS)
            stack.push_async_callback(channels[name].close, None)
        targets = {
            name: Target(
                channel,
                given.model,
                answer_s=given.timeout,
                most_body_bytes=given.max_body_bytes,
                health=channels.get("health"),
                address=addresses[name],
            )
            for name, channel in channels.items()
        }
        needed = needed_by(targets, command)
        return [await judge(case, needed) for case in CASES if given.only in case.name]


def needed_by(targets: Mapping[str, Target], command: str = "") -> dict[str, Target]:
    """By what a case may need: the targets given, and those that are made of two of them or of a command."""
    found = dict(targets)
    if "health" in found:
        found["health"] = targets["serving"]
    if "second" in found and "one" in found:
        found["second"] = replace(targets["one"], second=targets["second"])
    else:
        found.pop("second", None)
    if command:
        found["drain"] = replace(targets["serving"], drain=lambda: _run(command))
    return found


async def _run(command: str) -> None:
    status = await (await asyncio.create_subprocess_shell(command)).wait()
    if status:
        raise Deviation(f"the command to stop it ended with status {status}")


def _option(given: argparse.Namespace, option: str) -> str:
    return str(getattr(given, option.replace("-", "_")) or "")


def main(rest: Sequence[str]) -> int:
    """Exit status 0 where every case that could be put was passed, 1 where one was not, 2 on bad input."""
    given = _parser().parse_args(rest)
    verdicts = asyncio.run(judge_all(given))
    if given.json:
        print(json.dumps({"target": given.target, "verdicts": [asdict(one) for one in verdicts]}, indent=2))
    else:
        _show(verdicts)
    return 1 if any(one.outcome == "failed" for one in verdicts) else 0


def _show(verdicts: Sequence[Verdict]) -> None:
    styles = {"passed": "green", "failed": "red", "skipped": "dim"}
    table = Table("case", "", "what was seen")
    for one in verdicts:
        table.add_row(one.case, f"[{styles[one.outcome]}]{one.outcome}[/]", one.detail)
    console = Console()
    console.print(table)
    counts = {outcome: sum(1 for one in verdicts if one.outcome == outcome) for outcome in styles}
    console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmrouter epp-conformance",
        description="Asks an endpoint picker over the wire whether it speaks the endpoint-picker protocol v1. Nothing "
        "of it is known but its address.",
    )
    parser.add_argument("--model", required=True, help="a model that it serves")
    for name, (option, words) in NEEDS.items():
        metavar = "COMMAND" if name == "drain" else "HOST:PORT"
        parser.add_argument(f"--{option}", required=name == "serving", metavar=metavar, help=words)
    parser.add_argument(
        "--tls", action="store_true", help="connect with TLS, whatever certificate is shown (default: plain text)"
    )
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds to wait for an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--max-body-bytes", type=int, default=32 * 1024 * 1024, help="a longer body must be refused (default: 32 MiB)"
    )
    parser.add_argument("--only", default="", metavar="WORDS", help="only cases whose names hold these words")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
