"""Envoy in front, as the chart has it: with a picker, and alone, over the same instances in turn."""

from __future__ import annotations

from typing import Any

from llmrouter.testbed.envoy import bootstrap

BOUNDS = {"max_connections": 100_000, "max_requests": 100_000, "heap_bytes": 4 * 1024**3}
"""Out of the way of what the benchmark offers."""

_PICKER, _INSTANCES = "picker", "instances"


def with_picker(*, port: int, pickers: list[str], admin_port: int, tls: bool) -> dict[str, Any]:
    """Everything goes where a picker says. Nobody asks for pickers' health: a peer may say it on another port."""
    config = bootstrap(port=port, picker=pickers[0], admin_port=admin_port, picker_tls=tls, **BOUNDS)
    cluster = _cluster(config, _PICKER)
    cluster.pop("health_checks", None)
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [_endpoint(one) for one in pickers]}]
    return config


def alone(*, port: int, admin_port: int, endpoints: list[str]) -> dict[str, Any]:
    """The same without a picker: the fixed route, to the instances in turn."""
    config = bootstrap(port=port, picker="127.0.0.1:1", admin_port=admin_port, **BOUNDS)
    resources = config["static_resources"]
    for listener in resources["listeners"]:
        for chain in listener["filter_chains"]:
            for one in chain["filters"]:
                filters = one["typed_config"]["http_filters"]
                one["typed_config"]["http_filters"] = [f for f in filters if f["name"].endswith(".router")]
                for host in one["typed_config"]["route_config"]["virtual_hosts"]:
                    for route in host["routes"]:
                        route.pop("typed_per_filter_config", None)
    kept = _cluster(config, _INSTANCES)
    turn = {name: value for name, value in kept.items() if name not in {"lb_policy", "original_dst_lb_config"}}
    turn |= {"type": "STATIC", "lb_policy": "ROUND_ROBIN"}
    turn["load_assignment"] = {
        "cluster_name": _INSTANCES,
        "endpoints": [{"lb_endpoints": [_endpoint(one) for one in endpoints]}],
    }
    resources["clusters"] = [turn]
    return config


def _cluster(config: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in config["static_resources"]["clusters"] if one["name"] == name)
    return found


def _endpoint(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
