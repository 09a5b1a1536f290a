"""A whole cluster on one machine: brought up, found again, taken down."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmrouter.testbed.cluster import containers, machine, network, node
from llmrouter.testbed.cluster.binaries import NODE, Binaries, kubectl
from llmrouter.testbed.cluster.containers import Containerd
from llmrouter.testbed.cluster.control_plane import ControlPlane, Settings
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.images import ImageNames, Images, image_names
from llmrouter.testbed.cluster.network import Network
from llmrouter.testbed.cluster.node import Layout
from llmrouter.testbed.cluster.places import cache_directory, state_directory
from llmrouter.testbed.cluster.processes import Process, end_commands, free_port, recorded, start
from llmrouter.testbed.cluster.progress import Progress

# The order in which programs end: nothing brings back what ended before it.
STOPPED_IN_ORDER = (
    "kubelet",
    "kube-proxy",
    "coredns",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
)
_RECORD = "cluster.json"


def layout_of(state: Path) -> Layout:
    """Where the programs of the cluster with this state directory keep things."""
    return Layout(state=state, images=cache_directory() / "containerd")


@dataclass(frozen=True)
class Cluster:
    """A running one-machine cluster.

    `kubeconfig` is an administrator's; `binaries` has the paths of kubectl and helm among others.
    """

    state: Path
    kubeconfig: Path
    server: str
    binaries: Mapping[str, Path]

    @classmethod
    def up(cls, progress: Progress, *, images: bool = True) -> Self:
        """Brings a fresh cluster up: its node Ready and, unless told otherwise, the project's images loaded.

        What an earlier run left is removed first. On any exception everything that was started is taken down again.
        Raises `UnsuitableMachineError` in one line where this machine cannot run a node.
        """
        machine.check()
        machine.install_packages(progress)
        with _alone(progress):
            _remove(progress)
            try:
                return cls._start(progress, images=images)
            except BaseException:
                end_commands()
                _keep_logs(progress)
                _remove(progress)
                raise

    @classmethod
    def current(cls) -> Self | None:
        """The cluster that runs at this moment, or None."""
        state = state_directory()
        try:
            known = json.loads((state / _RECORD).read_text())
        except FileNotFoundError:
            return None
        if recorded(state / "kubelet.pid") is None:
            return None
        programs = {name: Path(path) for name, path in known["binaries"].items()}
        return cls(state, Path(known["kubeconfig"]), known["server"], programs)

    @property
    def logs(self) -> Path:
        """The folder of the programs' logs, and of the pods' below `pods`."""
        return layout_of(self.state).logs

    @property
    def images(self) -> ImageNames:
        """What the images of the present sources are called on the node."""
        return image_names()

    def load_images(self, progress: Progress) -> ImageNames:
        """Builds images whose sources changed, loads what the node does not have, returns their names."""
        return _load_images(layout_of(self.state), progress)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Runs kubectl as an administrator."""
        return kubectl(self.binaries["kubectl"], self.kubeconfig, *words, stdin=stdin)

    def down(self, progress: Progress) -> None:
        """Takes everything away: programs, pods, mounts, the bridge, packet rules, the state directory."""
        down(progress)

    @classmethod
    def _start(cls, progress: Progress, *, images: bool) -> Self:
        layout = layout_of(state_directory())
        layout.state.mkdir(parents=True, mode=0o700)
        ranges = network.create()
        _start_containerd(layout, ranges, progress)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="images") as beside:
            loading = beside.submit(_load_images, layout, progress) if images else None
            try:
                binaries = Binaries(progress=progress).provide(NODE)
                plane = _start_control_plane(layout, ranges, binaries, progress)
                _start_node(layout, ranges, plane, binaries, progress=progress)
                if loading is not None:
                    loading.result()
            except BaseException:
                end_commands()
                raise
        return cls._recorded(layout, plane, binaries)

    @classmethod
    def _recorded(cls, layout: Layout, plane: ControlPlane, binaries: Mapping[str, Path]) -> Self:
        cluster = cls(layout.state, plane.kubeconfig, plane.server, binaries)
        known = {
            "kubeconfig": str(plane.kubeconfig),
            "server": plane.server,
            "binaries": {name: str(path) for name, path in binaries.items()},
        }
        (layout.state / _RECORD).write_text(json.dumps(known))
        return cluster


def down(progress: Progress) -> None:
    """Takes away what is there of a cluster, running or left over. Nothing there is no error."""
    with _alone(progress):
        _remove(progress)


def _remove(progress: Progress) -> None:
    layout = layout_of(state_directory())
    cgroups = containers.cgroup_folders(layout, Path("/proc/mounts").read_text())
    if not layout.state.exists() and not any(folder.exists() for folder in cgroups):
        return
    with progress.part("take the cluster down", usually_s=5):
        for name in STOPPED_IN_ORDER:
            _stop(layout, name)
        containers.remove_cgroups(cgroups)
        if recorded(layout.state / "containerd.pid") is not None:
            with contextlib.suppress(ClusterError):  # a containerd that answers no more is ended below
                Containerd(layout).clear()
        _stop(layout, "containerd")
        containers.remove_strays(layout, (*STOPPED_IN_ORDER, "containerd"))
        containers.remove_mounts((layout.state, layout.images))
        containers.remove_traces(layout)
        network.remove()
        shutil.rmtree(layout.state, ignore_errors=True)


def _keep_logs(progress: Progress) -> None:
    """Puts the logs of a cluster that did not come up where they outlive it; those of the time before go."""
    logs, kept = layout_of(state_directory()).logs, cache_directory() / "logs-of-last-failure"
    if logs.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(logs, kept, ignore=shutil.ignore_patterns("pods"))
        progress.note(f"the logs are kept in {kept}")


def _stop(layout: Layout, name: str) -> None:
    process = recorded(layout.state / f"{name}.pid")
    if process is not None:
        process.stop(grace_s=3 if name == "containerd" else 0.5)


def _start_containerd(layout: Layout, ranges: Network, progress: Progress) -> None:
    with progress.part("start containerd", usually_s=1):
        for folder in (layout.images, layout.cni, layout.logs):
            folder.mkdir(parents=True, exist_ok=True)
        containers.forget_pods(layout)
        folders = containers.cgroup_folders(layout, Path("/proc/mounts").read_text())
        containers.make_cgroups(folders, cores=os.cpu_count() or 1)
        config = layout.state / "containerd.toml"
        config.write_text(node.containerd_config(layout, snapshotter=_snapshotter(layout), plugins=machine.CNI_PLUGINS))
        (layout.cni / "10-llmrouter.conflist").write_text(json.dumps(node.cni_config(layout, ranges)))
        process = _launch(layout, "containerd", ["containerd", "--config", str(config)])
        containerd = Containerd(layout)
        process.ready(containerd.answers, within_s=30)
        containerd.clear()


def _start_control_plane(
    layout: Layout, ranges: Network, binaries: Mapping[str, Path], progress: Progress
) -> ControlPlane:
    settings = Settings(
        directory=layout.state,
        address=ranges.bridge_address,
        service_cidr=ranges.service_cidr,
        service_ip=ranges.service_ip,
        scheduler=True,
        tied=False,
        port=free_port(ranges.bridge_address),
    )
    plane = ControlPlane(settings, binaries)
    with progress.part("start etcd, kube-apiserver, kube-controller-manager, kube-scheduler", usually_s=5):
        plane.start()
    return plane


def _start_node(
    layout: Layout, ranges: Network, plane: ControlPlane, binaries: Mapping[str, Path], *, progress: Progress
) -> None:
    with progress.part("start kubelet, kube-proxy, CoreDNS; node Ready", usually_s=6):
        containerd = Containerd(layout)
        if node.PAUSE_IMAGE not in containerd.images():
            archive = containers.pause_archive(binaries["pause"], layout.state / "pause.tar")
            containerd.import_archive(archive, snapshotter=_snapshotter(layout))
        for path, rights in node.dns_rights():
            plane.api.apply(path, rights)
        for user in ("node", "proxy", "dns"):
            plane.user_kubeconfig(user)
        plane.credentials.authority.sign("kubelet", subject=f"/CN={node.NODE_NAME}", ips=(ranges.bridge_address,))
        _write_configs(layout, ranges)
        kubelet = _launch(layout, "kubelet", [binaries["kubelet"], *node.kubelet_arguments(layout, ranges)])
        _launch(layout, "kube-proxy", [binaries["kube-proxy"], f"--config={layout.state / 'proxy.json'}"])
        _launch(layout, "coredns", [binaries["coredns"], "-conf", str(layout.state / "Corefile")])
        kubelet.ready(lambda: _node_ready(plane), within_s=90)


def _write_configs(layout: Layout, ranges: Network) -> None:
    ports = (free_port(), free_port())
    (layout.state / "resolv.conf").write_text(f"nameserver {ranges.bridge_address}\n")
    (layout.state / "kubelet.json").write_text(json.dumps(node.kubelet_config(layout, ranges)))
    (layout.state / "proxy.json").write_text(json.dumps(node.proxy_config(layout, ranges, ports=ports)))
    (layout.state / "Corefile").write_text(node.corefile(layout, ranges))


def _node_ready(plane: ControlPlane) -> bool:
    path = f"/api/v1/nodes/{node.NODE_NAME}"
    if not plane.api.exists(path):
        return False
    found = plane.api.get(path)
    ready = any(it["type"] == "Ready" and it["status"] == "True" for it in found["status"].get("conditions") or ())
    return ready and not found["spec"].get("taints")


def _load_images(layout: Layout, progress: Progress) -> ImageNames:
    containerd = Containerd(layout)
    names = image_names()
    missing = sorted(set(names.all()) - containerd.images())
    if missing:
        images = Images(progress)
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="image") as both:
            for loaded in [both.submit(_load_image, layout, images, name, progress=progress) for name in missing]:
                loaded.result()
        images.prune()
        containerd.keep_images((*names.all(), node.PAUSE_IMAGE))
    return names


def _load_image(layout: Layout, images: Images, name: str, *, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=layout.state) as scratch:
        folder = images.directory(name, Path(scratch))
        with progress.part(f"load {name} into containerd", usually_s=5):
            Containerd(layout).import_directory(name, folder, snapshotter=_snapshotter(layout))


def _snapshotter(layout: Layout) -> str:
    return "overlayfs" if machine.overlay_works(layout.images) else "native"


def _launch(layout: Layout, name: str, argv: list[str | Path]) -> Process:
    log, pid_file = layout.logs / f"{name}.log", layout.state / f"{name}.pid"
    path = os.environ.get("PATH", "")
    environment = {"PATH": f"{path}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(layout.state)}
    return start(name, argv, log=log, env=environment, tied=False, pid_file=pid_file)


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """Lets one run at a time change the machine's cluster."""
    lock_file = cache_directory() / "cluster.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.note("another run is changing the cluster: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
