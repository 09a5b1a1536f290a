"""Whether this machine can be a Kubernetes node, and the Debian packages that one needs."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from llmrouter.testbed.cluster.errors import ClusterError, UnsuitableMachineError
from llmrouter.testbed.cluster.processes import run
from llmrouter.testbed.cluster.progress import Progress

WAYS_OUT = (
    "Use an existing cluster with `make demo CONTEXT=<kubectl context>`, or no cluster with `make demo-standalone`."
)
CNI_PLUGINS = Path("/usr/lib/cni")
PACKAGES: Mapping[str, str] = {
    "containerd": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "sysctl": "procps",
    "mount": "mount",
    "openssl": "openssl",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
}
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def shortcomings(
    *, user_id: int, system: str, filesystems: str, controllers: Iterable[str], probes: Mapping[str, bool]
) -> list[str]:
    """What this machine lacks to be a node, in words; empty where it lacks nothing."""
    if system != "Linux":
        return ["this is not Linux"]
    if user_id != 0:
        return ["a Kubernetes node needs root"]
    lacks = []
    if "overlay" not in filesystems.split():
        lacks.append("overlayfs")
    missing = [name for name in _CONTROLLERS if name not in controllers]
    if missing:
        lacks.append(f"the cgroup controllers {', '.join(missing)}")
    lacks += [name for name, works in probes.items() if not works]
    return [f"the kernel lacks {' and '.join(lacks)}"] if lacks else []


def check() -> None:
    """Raises `UnsuitableMachineError`, in one line with both ways out, where no node can run here."""
    root = os.geteuid() == 0
    probes: dict[str, bool] = {}
    if root and shutil.which("ip"):
        probes["bridges (or the right to make one)"] = _works(_try_bridge)
    found = shortcomings(
        user_id=os.geteuid(),
        system=os.uname().sysname,
        filesystems=_read("/proc/filesystems"),
        controllers=_controllers(),
        probes=probes,
    )
    if found:
        raise UnsuitableMachineError(f"No Kubernetes node can run here: {'; '.join(found)}. {WAYS_OUT}")


def install_packages(progress: Progress) -> None:
    """Installs the Debian packages that are missing. Where apt-get is missing too, it names them."""
    missing = sorted({package for command, package in PACKAGES.items() if not _present(command)})
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise UnsuitableMachineError(f"Missing, and no apt-get to install it: {', '.join(missing)}. {WAYS_OUT}")
    with progress.part(f"install {', '.join(missing)}", usually_s=15):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = [
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=120",
            "install",
            "-y",
            "-q",
            "--no-install-recommends",
            *missing,
        ]
        try:
            run(install, env=environment)
        except ClusterError as error:
            progress.note(f"the package lists may be old, fetching them: {str(error).splitlines()[-1]}")
            run(["apt-get", "update", "-q"], env=environment)
            run(install, env=environment)


def overlay_works(below: Path) -> bool:
    """Whether overlayfs can have its upper layer in this folder; on another overlay it cannot."""
    trial = below / ".overlay-trial"
    layers = {name: trial / name for name in ("lower", "upper", "work", "merged")}
    for folder in layers.values():
        folder.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={layers['lower']},upperdir={layers['upper']},workdir={layers['work']}"
    try:
        works = _works(lambda: run(["mount", "-t", "overlay", "overlay", "-o", options, layers["merged"]]))
        if works:
            run(["umount", layers["merged"]])
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return works


def _controllers() -> set[str]:
    """The cgroup controllers of either version that the kernel has switched on."""
    lines = [line.split() for line in _read("/proc/cgroups").splitlines() if not line.startswith("#")]
    first = {words[0] for words in lines if words[-1] == "1"}
    return first | set(_read("/sys/fs/cgroup/cgroup.controllers").split())


def _try_bridge() -> None:
    run(["ip", "link", "add", "llmrouter-try", "type", "bridge"])
    run(["ip", "link", "delete", "llmrouter-try"])


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except ClusterError:  # the probe's answer: it does not work here
        return False
    return True


def _present(command: str) -> bool:
    return Path(command).exists() if command.startswith("/") else shutil.which(command) is not None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # not there on this kernel: it offers nothing
        return ""
