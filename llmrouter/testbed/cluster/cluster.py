"""A whole cluster on one machine: brought up, found again, taken down."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmrouter.testbed.cluster import containers, machine, network, node
from llmrouter.testbed.cluster.binaries import NODE, Binaries, kubectl
from llmrouter.testbed.cluster.control_plane import ControlPlane, Settings
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.images import Images
from llmrouter.testbed.cluster.network import Network
from llmrouter.testbed.cluster.places import cache_directory, state_directory
from llmrouter.testbed.cluster.processes import free_port, recorded, start
from llmrouter.testbed.cluster.progress import Progress

# The order in which programs end: nothing restarts what was stopped before it.
STOPPED_IN_ORDER = (
    "kubelet",
    "kube-proxy",
    "coredns",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
    "containerd",
)
_RECORD = "cluster.json"


@dataclass(frozen=True)
class Cluster:
    """A running one-machine cluster.

    `kubeconfig` is an administrator's; `binaries` has paths of kubectl and helm among others; `logs` one file per program.
    """

    state: Path
    kubeconfig: Path
    server: str
    binaries: Mapping[str, Path]

    @classmethod
    def up(cls, progress: Progress, *, images: bool = True) -> Self:
        """Brings a fresh cluster up, its node Ready and, unless told otherwise, the project's images loaded.

        What an earlier run left is removed first. On any exception everything that was started is taken down again.
        Raises `UnsuitableMachineError` in one line where this machine cannot run a node.
        """
        machine.check()
        binaries = Binaries(progress=progress)
        machine.install_packages(progress)
        with _alone(progress):
            down(progress)
            try:
                with contextlib.ExitStack() as stack:
                    built = stack.enter_context(Images(progress).building()) if images else None
                    cluster = cls._start(binaries.provide(NODE), progress)
                    if built is not None:
                        cluster._load(built.result(), progress)
            except BaseException:
                down(progress)
                raise
        return cluster

    @classmethod
    def current(cls) -> Self | None:
        """The cluster that runs at this moment, or None."""
        record = state_directory() / _RECORD
        try:
            known = json.loads(record.read_text())
        except FileNotFoundError:
            return None
        if recorded(state_directory() / "kubelet.pid") is None:
            return None
        programs = {name: Path(path) for name, path in known["binaries"].items()}
        return cls(state_directory(), Path(known["kubeconfig"]), known["server"], programs)

    @property
    def logs(self) -> Path:
        """The folder of the programs' logs, and of the pods' below `pods`."""
        return self.state / "logs"

    def load_images(self, progress: Progress) -> None:
        """Builds the project's images where a source changed, and loads what the node does not have yet."""
        self._load(Images(progress).build(), progress)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Runs kubectl as an administrator."""
        return kubectl(self.binaries["kubectl"], self.kubeconfig, *words, stdin=stdin)

    def down(self, progress: Progress) -> None:
        """Takes everything away: programs, pods, mounts, the bridge, packet rules, the state directory."""
        with _alone(progress):
            down(progress)
