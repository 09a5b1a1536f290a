"""The cluster's addresses: which ranges are free on this machine, the bridge, and their removal."""

import ipaddress
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass

from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.processes import run

BRIDGE = "llmrouter0"
_CANDIDATES = (201, 211, 221, 231)
_RULE = ("-i", BRIDGE, "-m", "comment", "--comment", "llmrouter-cluster", "-j", "ACCEPT")
_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))


@dataclass(frozen=True)
class Network:
    """Two ranges of 65,536 addresses: one for the bridge and the pods on it, one for Services."""

    pod_cidr: str
    service_cidr: str

    @property
    def bridge_address(self) -> str:
        """The first address of the pods' range: the node, the API server and the DNS server are there."""
        return str(ipaddress.ip_network(self.pod_cidr)[1])

    @property
    def service_ip(self) -> str:
        """The address of the Service `kubernetes`."""
        return str(ipaddress.ip_network(self.service_cidr)[1])


def choose(taken: Iterable[str]) -> Network:
    """The first candidate whose two ranges overlap none of the `taken` destinations."""
    used = [ipaddress.ip_network(destination, strict=False) for destination in taken]
    for second in _CANDIDATES:
        network = Network(f"10.{second}.0.0/16", f"10.{second + 1}.0.0/16")
        own = [ipaddress.ip_network(cidr) for cidr in (network.pod_cidr, network.service_cidr)]
        if not any(mine.overlaps(other) for mine in own for other in used):
            return network
    raise ClusterError(f"no free address range: 10.{_CANDIDATES[0]}.0.0/16 and the other candidates are routed already")


def destinations(routes: str) -> list[str]:
    """The destinations in what `ip -json route` prints, the default route left out."""
    return [route["dst"] for route in json.loads(routes or "[]") if route["dst"] != "default"]


def create() -> Network:
    """Makes the bridge with its address and lets the machine forward packets; returns the ranges in use."""
    remove()
    network = choose(destinations(run(["ip", "-json", "-4", "route", "show"])))
    run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    prefix = ipaddress.ip_network(network.pod_cidr).prefixlen
    run(["ip", "address", "add", f"{network.bridge_address}/{prefix}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    # A machine without a default route would else refuse Service addresses before kube-proxy sees them.
    run(["ip", "route", "add", network.service_cidr, "dev", BRIDGE])
    run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
    if _forwarding_is_refused():
        run(["iptables", "-I", "FORWARD", *_RULE])
    return network


def remove() -> None:
    """Removes the bridge and every rule of ours; what is not there is no error."""
    if _there(["ip", "link", "show", BRIDGE]):
        run(["ip", "link", "delete", BRIDGE])
    if shutil.which("iptables") and _there(["iptables", "-C", "FORWARD", *_RULE]):
        run(["iptables", "-D", "FORWARD", *_RULE])
    for table in _TABLES:
        if shutil.which("nft") and _there(["nft", "list", "table", *table]):
            run(["nft", "delete", "table", *table])


def _forwarding_is_refused() -> bool:
    """Whether another program (Docker does) makes the machine drop forwarded packets unless a rule lets them pass."""
    return bool(shutil.which("iptables")) and "-P FORWARD DROP" in run(["iptables", "-S", "FORWARD"])


def _there(question: list[str]) -> bool:
    try:
        run(question)
    except ClusterError:  # the command's way of saying that there is no such thing
        return False
    return True
