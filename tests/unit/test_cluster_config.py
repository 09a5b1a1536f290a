import json
import tomllib
from pathlib import Path

import pytest

from llmrouter.testbed.cluster import certificates, machine, network, node
from llmrouter.testbed.cluster.api import kubeconfig
from llmrouter.testbed.cluster.containers import (
    blobs_of,
    cgroup_folders,
    index_of,
    make_cgroups,
    mounts_below,
    superseded,
)
from llmrouter.testbed.cluster.control_plane import (
    Settings,
    api_server_arguments,
    etcd_arguments,
    is_established,
    make_credentials,
)
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.network import Network

LAYOUT = node.Layout(state=Path("/state/one"), images=Path("/cache/containerd"))
NETWORK = Network("10.201.0.0/16", "10.202.0.0/16")


def test_the_first_free_ranges_are_taken() -> None:
    assert network.choose([]) == NETWORK
    assert network.choose(["192.168.0.0/16", "10.201.7.0/24"]) == Network("10.211.0.0/16", "10.212.0.0/16")
    assert network.choose(["10.202.0.1", "10.212.0.1"]) == Network("10.221.0.0/16", "10.222.0.0/16")


def test_no_free_range_is_an_error() -> None:
    with pytest.raises(ClusterError, match="no free address range"):
        network.choose(["10.0.0.0/8"])


def test_the_default_route_takes_no_range() -> None:
    routes = json.dumps([{"dst": "default", "gateway": "192.0.2.1"}, {"dst": "192.0.2.0/24"}, {"dst": "203.0.113.9"}])

    assert network.destinations(routes) == ["192.0.2.0/24", "203.0.113.9"]
    assert network.destinations("") == []


def test_addresses_of_a_network() -> None:
    assert (NETWORK.bridge_address, NETWORK.service_ip) == ("10.201.0.1", "10.202.0.1")


def test_containerd_keeps_to_its_own_places() -> None:
    config = tomllib.loads(node.containerd_config(LAYOUT, snapshotter="native", plugins=Path("/plugins")))

    assert config["root"] == "/cache/containerd"
    assert config["state"] == "/state/one/containerd"
    assert config["grpc"]["address"] == "/state/one/containerd.sock"
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["sandbox_image"] == node.PAUSE_IMAGE
    assert cri["cni"] == {"bin_dir": "/plugins", "conf_dir": "/state/one/cni"}
    assert cri["containerd"]["snapshotter"] == "native"
    assert cri["containerd"]["runtimes"]["runc"]["options"]["Root"] == "/state/one/runc"


def test_the_kubelet_lets_nobody_in_unasked() -> None:
    config = node.kubelet_config(LAYOUT, NETWORK)

    assert config["address"] == "10.201.0.1"
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["readOnlyPort"] == 0
    assert config["cgroupRoot"] == "/one"


def test_pods_have_the_ranges_of_the_network() -> None:
    (bridge,) = node.cni_config(LAYOUT, NETWORK)["plugins"]

    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.201.0.0/16", "gateway": "10.201.0.1"}]]
    assert node.proxy_config(LAYOUT, NETWORK, ports=(1, 2))["clusterCIDR"] == "10.201.0.0/16"


def test_each_block_of_the_corefile_has_its_own_lines() -> None:
    lines = [line.strip() for line in node.corefile(LAYOUT, NETWORK).splitlines()]

    assert lines[0] == ". {"
    assert "bind 10.201.0.1" in lines
    assert lines.count("}") == 2


def test_a_certificate_names_who_it_is_for() -> None:
    leaf = certificates.extensions(authority=False, ips=("127.0.0.1",), names=("localhost",))

    assert "subjectAltName = IP:127.0.0.1, DNS:localhost" in leaf
    assert "CA:FALSE" in leaf
    assert "CA:TRUE" in certificates.extensions(authority=True)


def test_credentials_are_private_and_never_on_a_command_line(tmp_path: Path) -> None:
    settings = Settings(directory=tmp_path, etcd_port=1, etcd_peer_port=2, port=3)
    credentials = make_credentials(settings)
    arguments = [*etcd_arguments(settings, credentials), *api_server_arguments(settings, credentials)]

    for secret in (credentials.tokens_file, credentials.serving.key, credentials.service_accounts.key):
        assert secret.stat().st_mode & 0o077 == 0
    assert not [word for word in arguments for token in credentials.tokens.values() if token in word]
    assert "--authorization-mode=Node,RBAC" in arguments
    assert "--anonymous-auth=false" in arguments
    assert "--client-cert-auth" in arguments


def test_a_kubeconfig_trusts_its_own_authority_only(tmp_path: Path) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text("certificate")

    config = kubeconfig(server="https://127.0.0.1:1", authority=authority, token="of-one-run")  # noqa: S106

    assert config["clusters"][0]["cluster"]["certificate-authority-data"] == "Y2VydGlmaWNhdGU="
    assert config["users"][0]["user"] == {"token": "of-one-run"}
    assert config["current-context"] == config["contexts"][0]["name"]


GOOD = {"user_id": 0, "system": "Linux", "filesystems": "nodev overlay\n ext4", "probes": {"bridges": True}}
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def lacks(**different: object) -> list[str]:
    return machine.shortcomings(**{**GOOD, "controllers": CONTROLLERS, **different})  # type: ignore[arg-type]


def test_what_a_machine_lacks_is_said() -> None:
    assert lacks() == []
    assert lacks(user_id=1000) == ["a Kubernetes node needs root"]
    assert lacks(system="Darwin") == ["this is not Linux"]
    assert lacks(filesystems="ext4", controllers=("cpu",), probes={"bridges": False}) == [
        "the kernel lacks overlayfs and the cgroup controllers cpuset, memory, pids and bridges"
    ]


def test_both_ways_out_are_named() -> None:
    assert "make demo CONTEXT=" in machine.WAYS_OUT
    assert "make demo-standalone" in machine.WAYS_OUT
    assert "\n" not in machine.WAYS_OUT


MOUNTS = """\
cgroup /sys/fs/cgroup/cpu cgroup rw 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
overlay /state/one/run/a/rootfs overlay rw 0 0
tmpfs /state/one/run/a tmpfs rw 0 0
tmpfs /state/one-more tmpfs rw 0 0
"""


def test_cgroups_of_both_versions_are_found() -> None:
    assert cgroup_folders(LAYOUT, MOUNTS) == [Path("/sys/fs/cgroup/cpu/one"), Path("/sys/fs/cgroup/unified/one")]


def test_inner_mounts_come_first_and_neighbours_are_left_alone() -> None:
    assert mounts_below(MOUNTS, ("/state/one",)) == ["/state/one/run/a/rootfs", "/state/one/run/a"]


MANIFEST = (
    b'{"mediaType": "m", "config": {"digest": "sha256:c"}, "layers": [{"digest": "sha256:a"}, {"digest": "sha256:b"}]}'
)


def test_an_image_is_named_and_its_blobs_listed() -> None:
    (described,) = index_of(MANIFEST, "localhost/x:1")["manifests"]

    assert described["annotations"] == {"io.containerd.image.name": "localhost/x:1"}
    assert described["size"] == len(MANIFEST)
    assert blobs_of(MANIFEST) == ["c", "a", "b"]


def test_old_images_go_with_their_second_names() -> None:
    images = [("router:1", "old"), ("sha256:1", "old"), ("router:2", "new"), ("sha256:2", "new")]

    assert superseded(images, keep={"router:2"}) == ["router:1", "sha256:1"]


@pytest.mark.parametrize("status", [None, {}, {"conditions": None}, {"conditions": []}])
def test_a_definition_that_was_just_made_is_not_established(status: dict[str, object] | None) -> None:
    assert not is_established({"status": status})
    assert not is_established({})
    assert is_established({"status": {"conditions": [{"type": "Established", "status": "True"}]}})


def test_pods_weigh_as_much_as_the_machine_has_cores(tmp_path: Path) -> None:
    cpu, other = tmp_path / "cpu", tmp_path / "memory"
    cpu.mkdir()
    (cpu / "cpu.shares").write_text("1024\n")

    make_cgroups([cpu, other], cores=4)

    assert (cpu / "cpu.shares").read_text() == "4096\n"
    assert list(other.iterdir()) == []
