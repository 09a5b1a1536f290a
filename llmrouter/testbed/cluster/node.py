"""The configuration files and flags of a node's programs, as pure functions of where things are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrouter.testbed.cluster.network import BRIDGE, Network

NODE_NAME = "llmrouter"
PAUSE_IMAGE = "localhost/llmrouter-pause:1"
_NOT_NEEDED = ("aufs", "btrfs", "devmapper", "zfs")
_CRI = 'plugins."io.containerd.grpc.v1.cri"'


@dataclass(frozen=True)
class Layout:
    """Where one node's programs keep things. All of it lies under `state`, but the images, which outlive the run."""

    state: Path
    images: Path

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.state / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The cgroup that all pods run under: by it their processes are told from other programs'."""
        return self.state.name

    @property
    def cni(self) -> Path:
        """The folder of the pod network's configuration."""
        return self.state / "cni"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root: pods' volumes are mounted below it."""
        return self.state / "kubelet"

    @property
    def logs(self) -> Path:
        """One log for each program, and the pods' logs."""
        return self.state / "logs"


def containerd_config(layout: Layout, *, snapshotter: str, plugins: Path) -> str:
    """The config.toml of a containerd that shares nothing with another one on the machine."""
    sections: dict[str, dict[str, str | bool | list[str]]] = {
        "grpc": {"address": str(layout.containerd_socket)},
        "debug": {"level": "warn"},
        'plugins."io.containerd.internal.v1.opt"': {"path": str(layout.state / "opt")},
        _CRI: {
            "sandbox_image": PAUSE_IMAGE,
            "restrict_oom_score_adj": True,
            "netns_mounts_under_state_dir": True,
            "disable_tcp_service": True,
        },
        f"{_CRI}.cni": {"bin_dir": str(plugins), "conf_dir": str(layout.cni)},
        f"{_CRI}.containerd": {"snapshotter": snapshotter, "default_runtime_name": "runc"},
        f"{_CRI}.containerd.runtimes.runc": {"runtime_type": "io.containerd.runc.v2"},
        f"{_CRI}.containerd.runtimes.runc.options": {"Root": str(layout.state / "runc"), "SystemdCgroup": False},
    }
    lines = [
        "version = 2",
        f"root = {json.dumps(str(layout.images))}",
        f"state = {json.dumps(str(layout.state / 'containerd'))}",
        f"disabled_plugins = {json.dumps([f'io.containerd.snapshotter.v1.{name}' for name in _NOT_NEEDED])}",
    ]
    for section, values in sections.items():
        lines.append(f"\n[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def cni_config(layout: Layout, network: Network) -> dict[str, Any]:
    """The pod network: one bridge, addresses handed out from the pods' range, no way to the outside."""
    return {
        "cniVersion": "1.0.0",
        "name": "llmrouter",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": network.pod_cidr, "gateway": network.bridge_address}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(layout.cni / "addresses"),
                },
            }
        ],
    }


def kubelet_config(layout: Layout, network: Network) -> dict[str, Any]:
    """A kubelet that listens on the bridge only, asks the API server about its callers, and evicts nothing."""
    pki = layout.state / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.bridge_address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [network.bridge_address],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.state / "resolv.conf"),
        "podLogsDir": str(layout.logs / "pods"),
        "volumePluginDir": str(layout.kubelet / "volume-plugins"),
        "healthzPort": 0,
        "readOnlyPort": 0,
        "registryPullQPS": 0,
        "serializeImagePulls": False,
        "shutdownGracePeriod": "0s",
    }


def kubelet_arguments(layout: Layout, network: Network) -> list[str]:
    """The kubelet's flags beside its configuration file."""
    return [
        f"--config={layout.state / 'kubelet.json'}",
        f"--kubeconfig={layout.state / 'node.kubeconfig'}",
        f"--root-dir={layout.kubelet}",
        f"--cert-dir={layout.state / 'pki'}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={network.bridge_address}",
    ]


def proxy_config(layout: Layout, network: Network, *, ports: tuple[int, int]) -> dict[str, Any]:
    """A kube-proxy with nftables that masquerades all Service traffic.

    An answer between two pods of one bridge would else go past the connection tracking that has to rewrite it.
    """
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(layout.state / "proxy.kubeconfig")},
        "clusterCIDR": network.pod_cidr,
        "hostnameOverride": NODE_NAME,
        "conntrack": {"maxPerCore": 0, "min": 0},
        "nftables": {"masqueradeAll": True, "minSyncPeriod": "100ms"},
        "nodePortAddresses": ["primary"],
        "healthzBindAddress": f"127.0.0.1:{ports[0]}",
        "metricsBindAddress": f"127.0.0.1:{ports[1]}",
    }


def corefile(layout: Layout, network: Network) -> str:
    """CoreDNS on the bridge: the names of the cluster and no others."""
    return "\n".join(
        [
            ". {",
            f"  bind {network.bridge_address}",
            "  errors",
            "  kubernetes cluster.local {",
            f"    kubeconfig {layout.state / 'dns.kubeconfig'}",
            "    ttl 1",
            "  }",
            "}",
            "",
        ]
    )


def dns_rights() -> tuple[tuple[str, dict[str, Any]], ...]:
    """What CoreDNS may read: (path, object) pairs."""
    base = "/apis/rbac.authorization.k8s.io/v1"
    name = "testbed-dns"
    rules = [
        {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    role = {**kind, "kind": "ClusterRole", "rules": rules}
    binding = {
        **kind,
        "kind": "ClusterRoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
    }
    return ((f"{base}/clusterroles/{name}", role), (f"{base}/clusterrolebindings/{name}", binding))
