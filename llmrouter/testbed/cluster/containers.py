"""containerd of our own: its images, its leftovers, and the cgroups that its containers run in."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Iterable
from pathlib import Path

from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError
from llmrouter.testbed.cluster.node import CGROUP, PAUSE_IMAGE, Layout
from llmrouter.testbed.cluster.processes import poll, run


class Containerd:
    """Talks to the containerd of one layout through `ctr`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            self.ctr("version")
        except ClusterError:  # not listening yet
            return False
        return True

    def images(self) -> set[str]:
        """The names of the images that pods can use without pulling."""
        return set(self.ctr("images", "list", "-q").split())

    def import_image(self, archive: Path, *, snapshotter: str) -> None:
        """Takes an image in from a docker-archive and unpacks its layers."""
        self.ctr("images", "import", "--snapshotter", snapshotter, str(archive))

    def forget_images(self, prefix: str, *, but: Iterable[str]) -> None:
        """Removes the images whose names begin with `prefix`, except those named."""
        old = sorted(name for name in self.images() - set(but) if name.startswith(prefix))
        if old:
            self.ctr("images", "remove", *old)

    def clear(self) -> None:
        """Removes every container and what it runs, and keeps the images."""
        for task in self.ctr("tasks", "list", "-q").split():
            with contextlib.suppress(ClusterError):  # ended by itself meanwhile; the container goes in any case
                self.ctr("tasks", "delete", "--force", task)
        for container in self.ctr("containers", "list", "-q").split():
            self.ctr("containers", "delete", container)

    def ctr(self, *words: str) -> str:
        """Runs one `ctr` command in the namespace that the kubelet uses."""
        socket = str(self._layout.containerd_socket)
        return run(["ctr", "--address", socket, "--namespace", "k8s.io", *words], within_s=300)


def forget_pods(layout: Layout) -> None:
    """Removes what containerd's CRI remembers of pods that ended with an earlier run. Only while it is down."""
    shutil.rmtree(layout.images / "io.containerd.grpc.v1.cri", ignore_errors=True)


def pause_archive(program: Path, into: Path) -> Path:
    """Writes the image of a single static program as a docker-archive."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        content = program.read_bytes()
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content))
    config = {
        "architecture": _architecture(os.uname().machine),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer.getvalue())}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(into, mode="w") as archive:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
            ("layer.tar", layer.getvalue()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return into


def cgroup_folders(mounts: str) -> list[Path]:
    """The folder of our cgroup in each hierarchy of /proc/mounts, version 1 and 2."""
    words = (line.split() for line in mounts.splitlines())
    return [Path(mounted[1]) / CGROUP for mounted in words if mounted[2] in {"cgroup", "cgroup2"}]


def make_cgroups(folders: Iterable[Path]) -> None:
    """Makes the cgroup that every pod of ours runs under, so that they are told from other programs'."""
    for folder in folders:
        folder.mkdir(exist_ok=True)


def remove_cgroups(folders: Iterable[Path]) -> None:
    """Kills every process in our cgroups and removes them."""
    there = [folder for folder in folders if folder.is_dir()]
    poll(lambda: not _kill_all(there), within_s=20, what="pods' processes gone")
    for folder in there:
        for path, _folders, _files in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # a dying process may hold it a moment longer: an empty folder stays
                Path(path).rmdir()


def remove_mounts(below: Iterable[Path], *, within_s: float = 10) -> None:
    """Unmounts everything under the given folders, the innermost first."""
    roots = tuple(str(folder) for folder in below)

    def none_left() -> bool:
        mounted = mounts_below(Path("/proc/mounts").read_text(), roots)
        for target in mounted:
            with contextlib.suppress(ClusterError):  # gone or busy: looked at again until the time is up
                run(["umount", "--lazy", target])
        return not mounted

    with contextlib.suppress(PartFailedError):  # removing the folder will say what is still there
        poll(none_left, within_s=within_s, what="unmounted")


def mounts_below(mounts: str, roots: tuple[str, ...]) -> list[str]:
    """The mount points of /proc/mounts that lie under one of `roots`, the innermost first."""
    targets = [line.split()[1].replace("\\040", " ") for line in mounts.splitlines()]
    return sorted((path for path in targets if any(path.startswith(f"{root}/") for root in roots)), reverse=True)


def remove_shims(socket: Path) -> None:
    """Kills the shims of our containerd that an abrupt end left behind: those started with its socket's name."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"containerd-shim" in words[0] and str(socket).encode() in words:
                os.kill(int(entry.name), signal.SIGKILL)


def remove_traces(layout: Layout) -> None:
    """Removes what the kubelet and the network plugins write at fixed places outside of the state directory."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(layout.logs)):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob("llmrouter-*"):
        result.unlink()


def _kill_all(folders: Iterable[Path]) -> bool:
    found = False
    for folder in folders:
        for file in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # the cgroup went with its last process
                for pid in file.read_text().split():
                    found = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
    return found


def _architecture(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
