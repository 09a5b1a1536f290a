"""``llmrouter epp-conformance --target HOST:PORT``: puts every case to a picker and says what it did."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from rich.console import Console
from rich.table import Table

from llmrouter.testbed.epp.cases import CASES
from llmrouter.testbed.epp.stream import Deviation, Target, said
from llmrouter.testbed.epp.trust import credentials_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.testbed.epp.cases import Case

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


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
        return Verdict(case.name, "skipped", f"--{case.needs}-target is not given")
    try:
        await asyncio.wait_for(case.run(target), 10 * target.answer_s)
    except Deviation as deviation:
        return Verdict(case.name, "failed", str(deviation))
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        return Verdict(case.name, "failed", said(error))
    return Verdict(case.name, "passed")


async def judge_all(given: argparse.Namespace) -> list[Verdict]:
    """All cases, one after the other."""
    addresses = {
        "serving": given.target,
        "health": given.health,
        "empty": given.empty_target,
        "full": given.full_target,
    }
    channels = {
        name: _channel(address, tls=given.tls and name != "health") for name, address in addresses.items() if address
    }
    try:
        targets = {
            name: Target(
                channel,
                given.model,
                answer_s=given.timeout,
                most_body_bytes=given.max_body_bytes,
                health=channels.get("health"),
            )
            for name, channel in channels.items()
        }
        return [await judge(case, targets) for case in CASES if given.only in case.name]
    finally:
        for channel in channels.values():
            await channel.close(None)


def main(rest: Sequence[str]) -> int:
    """Exit status 0 where every case that could be put was passed, 1 where one was not, 2 on bad input."""
    given = _parser().parse_args(rest)
    verdicts = asyncio.run(judge_all(given))
    if given.json:
        print(json.dumps({"target": given.target, "verdicts": [asdict(one) for one in verdicts]}, indent=2))
    else:
        _show(verdicts)
    return 1 if any(one.outcome == "failed" for one in verdicts) else 0


def _channel(address: str, *, tls: bool) -> grpc.aio.Channel:
    options: tuple[tuple[str, int | str], ...] = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
    if not tls:
        return grpc.aio.insecure_channel(address, options=options)
    credentials, more = credentials_of(address)
    return grpc.aio.secure_channel(address, credentials, options=(*options, *more))


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
    parser.add_argument("--target", required=True, metavar="HOST:PORT", help="a picker with ready instances")
    parser.add_argument("--model", required=True, help="a model that it serves")
    parser.add_argument("--health", metavar="HOST:PORT", help="its health service, in plain text (default: the target)")
    parser.add_argument("--empty-target", metavar="HOST:PORT", help="a picker without any instance")
    parser.add_argument("--full-target", metavar="HOST:PORT", help="a picker whose instances take no more")
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
