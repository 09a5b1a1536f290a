"""``python -m llmrouter_operator``: reads arguments and the environment, and runs the operator."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidConfigError, LLMRouterError
from llmrouter.logs import configure_logging
from llmrouter_operator.models import RouterDefaults
from llmrouter_operator.remote_models import check_hosts
from llmrouter_operator.startup import Options, StartupError, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STOPPED, BAD_USAGE, CANNOT_START = 1, 2, 3
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llmrouter_operator",
        description="Turns LLMRouter resources into router pods and keeps them as declared.",
        epilog="Environment: LLMROUTER_ROUTER_IMAGE (required), LLMROUTER_ROUTER_IMAGE_PULL_POLICY, "
        "LLMROUTER_ROUTER_IMAGE_PULL_SECRETS (comma-separated), POD_NAMESPACE, POD_NAME. "
        "Exit status: 1 leadership lost, 2 bad usage, 3 a permission, a CRD or the API server is missing.",
    )
    scope = parser.add_mutually_exclusive_group(required=True)
    scope.add_argument(
        "--namespace",
        action="append",
        dest="namespaces",
        metavar="X",
        help="look after this namespace; may be repeated",
    )
    scope.add_argument("--all-namespaces", action="store_true", help="look after all namespaces")
    parser.add_argument(
        "--lease-name", default="llmrouter-operator", metavar="NAME", help="Lease that replicas compete for"
    )
    parser.add_argument(
        "--lease-seconds",
        type=int,
        default=15,
        metavar="S",
        help="silence after which another replica takes over (default 15)",
    )
    parser.add_argument(
        "--http-port", type=int, default=8080, metavar="P", help="port of /healthz, /readyz and /metrics (default 8080)"
    )
    parser.add_argument(
        "--model-host",
        action="append",
        dest="allowed_hosts",
        metavar="[http://]HOST[:PORT]",
        help="models may be fetched from there; * is any host with a public address; may be repeated (default: none)",
    )
    parser.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")
    return parser


def read_options(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[Options, str]:
    """Options and the log level; exits with status 2 and one line on bad usage."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    image = environment.get("LLMROUTER_ROUTER_IMAGE", "")
    if not image:
        parser.error("LLMROUTER_ROUTER_IMAGE must name the router's image")
    if not 1 <= parsed.lease_seconds <= 600:  # noqa: PLR2004
        parser.error("--lease-seconds must be between 1 and 600")
    secrets = environment.get("LLMROUTER_ROUTER_IMAGE_PULL_SECRETS", "")
    options = Options(
        namespaces=tuple(parsed.namespaces or ()),
        own_namespace=environment.get("POD_NAMESPACE") or _own_namespace(),
        identity=f"{environment.get('POD_NAME') or socket.gethostname()}-{uuid.uuid4().hex[:8]}",
        defaults=RouterDefaults(
            image=image,
            pull_policy=environment.get("LLMROUTER_ROUTER_IMAGE_PULL_POLICY") or "IfNotPresent",
            pull_secrets=tuple(name for name in secrets.split(",") if name),
        ),
        lease_name=parsed.lease_name,
        lease_s=parsed.lease_seconds,
        http_port=parsed.http_port,
        allowed_hosts=_hosts(parser, parsed.allowed_hosts or ()),
    )
    return options, parsed.log_level


def _hosts(parser: argparse.ArgumentParser, entries: Sequence[str]) -> tuple[str, ...]:
    try:
        return check_hosts(entries)
    except InvalidConfigError as error:
        parser.error(f"--model-host: {error}")


def main() -> int:
    """Runs the operator; returns its exit status."""
    options, log_level = read_options(sys.argv[1:], os.environ)
    configure_logging(log_level)
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(log_level)))
    try:
        asyncio.run(run(options))
    except StartupError as error:
        print(f"llmrouter-operator: {error}", file=sys.stderr)
        return CANNOT_START
    except LLMRouterError as error:
        print(f"llmrouter-operator: {error}", file=sys.stderr)
        return STOPPED
    return 0


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else "default"


if __name__ == "__main__":
    sys.exit(main())
