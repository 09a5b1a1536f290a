"""``llmrouter explain``: one decision in words, from a log or from a router that still remembers it."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from llmrouter.decisions.record import MAX_LINE_BYTES, parse_line, read_log
from llmrouter.errors import InvalidInputError
from llmrouter.replay.explain_view import plain, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.decisions.record import DecisionRecord

ASK_S = 5.0
NOT_FOUND = 404


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="llmrouter explain",
        description="Says one routing decision in words: who was considered, why this instance, what was expected, "
        "what came of it. Records are there of requests that spec.decisionLog samples.",
    )
    made.add_argument("request_id", metavar="REQUEST_ID", help="id of the request, as the router's answer named it")
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--log", type=Path, metavar="FILE", help="decision log: JSON lines")
    where.add_argument(
        "--router",
        action="append",
        metavar="URL",
        help="a router's port for metrics, such as http://127.0.0.1:9090; it remembers the last decisions. May be "
        "given for several routers",
    )
    made.add_argument("--json", action="store_true", help="the record and its sentences as JSON")
    return made


def main(rest: Sequence[str]) -> int:
    """Runs the command; returns its exit status.

    Raises:
        InvalidInputError: there is no such record.
    """
    options = parser().parse_args(rest)
    record = in_log(options.log, options.request_id) if options.log else of_routers(options.router, options.request_id)
    if options.json:
        sys.stdout.write(json.dumps(plain(record), ensure_ascii=False, indent=1) + "\n")
    else:
        show(record, Console())
    return 0


def in_log(path: Path, request_id: str) -> DecisionRecord:
    """The last record of a request in a log; raises InvalidInputError where there is none."""
    found = None
    for record in read_log(path):
        if record.request_id == request_id:
            found = record
    if found is None:
        raise InvalidInputError(f"{path}: no decision on request {request_id!r}; was it sampled?")
    return found


def of_routers(urls: Sequence[str], request_id: str) -> DecisionRecord:
    """The record that one of the routers remembers; raises InvalidInputError where none does."""
    for url in urls:
        found = asked(url, request_id)
        if found is not None:
            return found
    raise InvalidInputError(
        f"--router: {', '.join(urls)}: no decision on request {request_id!r}; was it sampled, and among the last?"
    )


def asked(url: str, request_id: str) -> DecisionRecord | None:
    """What one router remembers of a request; raises InvalidInputError where it cannot be asked."""
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        raise InvalidInputError(f"--router {url}: must begin with http:// or https://")
    address = f"{url.rstrip('/')}/decisions/{urllib.parse.quote(request_id, safe='')}"
    try:
        with urllib.request.urlopen(address, timeout=ASK_S) as answer:  # noqa: S310 - http and https alone, see above
            return parse_line(answer.read(MAX_LINE_BYTES + 1))
    except urllib.error.HTTPError as error:
        with error:
            if error.code == NOT_FOUND:
                return None
        raise InvalidInputError(f"--router {url}: answered {error.code}") from error
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"--router {url}: {error}") from error
