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
from typing import Any

from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError
from llmrouter.testbed.cluster.node import PAUSE_IMAGE, Layout
from llmrouter.testbed.cluster.processes import poll, run

_WEIGHTS = {"cpu.shares": 1024, "cpu.weight": 100}
"""Of one program, by the file that says it: of cgroups version 1 and 2."""


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

    def import_archive(self, archive: Path, *, snapshotter: str) -> None:
        """Takes an image in from a tar file and unpacks its layers."""
        self.ctr("images", "import", "--snapshotter", snapshotter, str(archive))

    def import_directory(self, name: str, image: Path, *, snapshotter: str) -> None:
        """Takes an image in from a folder of its manifest and blobs. Blobs that are here already are not copied."""
        here = {digest.removeprefix("sha256:") for digest in self.ctr("content", "list", "-q").split()}
        manifest = (image / "manifest.json").read_bytes()
        archive = image.parent / "image.tar"
        with tarfile.open(archive, "w") as tar:
            _add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add(tar, "index.json", json.dumps(index_of(manifest, name)).encode())
            _add(tar, f"blobs/sha256/{hashlib.sha256(manifest).hexdigest()}", manifest)
            for digest in blobs_of(manifest):
                if digest not in here:
                    tar.add(image / digest, f"blobs/sha256/{digest}")
        self.import_archive(archive, snapshotter=snapshotter)

    def keep_images(self, names: Iterable[str]) -> None:
        """Removes every image but those named, under whichever name; layers that are still used stay."""
        rows = [line.split() for line in self.ctr("images", "list").splitlines()[1:]]
        old = superseded([(row[0], row[2]) for row in rows], keep=set(names))
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


def superseded(images: Iterable[tuple[str, str]], *, keep: set[str]) -> list[str]:
    """Of (name, digest) pairs, the names whose digest none of the names in `keep` has."""
    known = list(images)
    kept = {digest for name, digest in known if name in keep}
    return [name for name, digest in known if digest not in kept]


def index_of(manifest: bytes, name: str) -> dict[str, Any]:
    """An OCI index of one image, with the name that containerd is to know it by."""
    described = {
        "mediaType": json.loads(manifest)["mediaType"],
        "digest": f"sha256:{hashlib.sha256(manifest).hexdigest()}",
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": name},
    }
    return {"schemaVersion": 2, "manifests": [described]}


def blobs_of(manifest: bytes) -> list[str]:
    """The digests, without `sha256:`, of the configuration and the layers that an image's manifest lists."""
    content = json.loads(manifest)
    return [blob["digest"].removeprefix("sha256:") for blob in (content["config"], *content["layers"])]


def pause_archive(program: Path, into: Path) -> Path:
    """Writes the image of a single static program as a docker-archive."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add(tar, "pause", program.read_bytes(), mode=0o755)
    config = {
        "architecture": _architecture(os.uname().machine),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(into, mode="w") as archive:
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        _add(archive, "layer.tar", layer.getvalue())
    return into


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def cgroup_folders(layout: Layout, mounts: str) -> list[Path]:
    """The folder of the cluster's cgroup in each hierarchy of /proc/mounts, version 1 and 2."""
    words = (line.split() for line in mounts.splitlines())
    return [Path(mounted[1]) / layout.cgroup for mounted in words if mounted[2] in {"cgroup", "cgroup2"}]


def make_cgroups(folders: Iterable[Path], *, cores: int) -> None:
    """Makes the cgroup that every pod of ours runs under, so that they are told from other programs'.

    Beside other work it counts as one busy program for each core, as a node does: by default all pods together would
    count as one.
    """
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for name, one in _WEIGHTS.items():
            if (folder / name).exists():
                (folder / name).write_text(f"{one * cores}\n")


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


def remove_strays(layout: Layout, names: Iterable[str]) -> None:
    """Kills what no pid file speaks of: shims after an abrupt end, programs whose state directory was deleted by hand.

    They are told by their name and by our state directory among their arguments.
    """
    known = (*names, "containerd-shim-runc-v2")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            words = (entry / "cmdline").read_text(errors="replace").split("\0")
            if Path(words[0]).name in known and any(f"{layout.state}/" in word for word in words[1:]):
                os.kill(int(entry.name), signal.SIGKILL)


def remove_traces(layout: Layout) -> None:
    """Removes what the kubelet and the network plugins write at fixed places outside of the state directory."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and str(link.readlink()).startswith(str(layout.logs)):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # its plugin took it away first
            if f'"{layout.state}/' in result.read_text(errors="replace"):  # the network namespace that it is about
                result.unlink()


def _kill_all(folders: Iterable[Path]) -> bool:
    found = False
    for folder in folders:
        for path, _folders, _files in os.walk(folder):  # which passes over what goes while it looks
            with contextlib.suppress(OSError):  # the cgroup went with its last process
                for pid in (Path(path) / "cgroup.procs").read_text().split():
                    found = True
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
    return found


def _architecture(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
