"""Debian packages without installing them: fetched with their dependencies and unpacked into a folder."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.places import cache_directory
from llmrouter.testbed.cluster.processes import run


def fetch(packages: Iterable[str], into: Path, *, alone: bool) -> list[Path]:
    """Downloads packages from the machine's own sources, without root.

    With all that they depend on, as on a machine that has none of it installed; `alone`, without those dependencies
    that the machine has already.
    """
    into.mkdir(parents=True, exist_ok=True)
    (into / "partial").mkdir(exist_ok=True)
    options = ["-o", f"Dir::Cache::archives={into}", "-o", "Debug::NoLocking=true", "-o", "APT::Sandbox::User="]
    if not alone:
        nothing_installed = into / "status"
        nothing_installed.touch()
        options += ["-o", f"Dir::State::status={nothing_installed}"]
    # A private copy of the binary cache: root's may be locked, and it describes what is installed.
    options += [
        "-o",
        f"Dir::Cache::pkgcache={into / 'pkgcache.bin'}",
        "-o",
        f"Dir::Cache::srcpkgcache={into / 'srcpkgcache.bin'}",
    ]
    wanted = tuple(packages)
    try:
        return _download(wanted, into, options)
    except ClusterError:  # the machine has no lists of packages, or old ones: fetched here; a second failure is raised
        (into / "lists" / "partial").mkdir(parents=True)
        options += ["-o", f"Dir::State::lists={into / 'lists'}"]
        run(["apt-get", *options, "update"])
        return _download(wanted, into, options)


def _download(packages: tuple[str, ...], into: Path, options: list[str]) -> list[Path]:
    said = run(
        ["apt-get", *options, "install", "-y", "--download-only", "--no-install-recommends", "--reinstall", *packages]
    )
    archives = sorted(into.glob("*.deb"))
    absent = set(packages) - {archive.name.partition("_")[0] for archive in archives}
    if absent:
        raise ClusterError(f"apt-get gave no archive of {', '.join(sorted(absent))}:\n{said.strip()}")
    return archives


def unpack(archives: Iterable[Path], into: Path, *, without: Iterable[str] = ()) -> None:
    """Unpacks packages over each other, but those that match a pattern of `without`. None of their scripts runs."""
    into.mkdir(parents=True, exist_ok=True)
    patterns = tuple(without)
    for archive in archives:
        if not any(fnmatch(archive.name.partition("_")[0], pattern) for pattern in patterns):
            run(["dpkg-deb", "--extract", archive, into])


def provide_root(name: str, packages: tuple[str, ...], *, alone: bool, without: tuple[str, ...] = ()) -> Path:
    """A folder of the cache that holds the unpacked packages; made once for each list of packages."""
    key = hashlib.sha256(f"{alone} {packages} {without}".encode()).hexdigest()[:12]
    root = cache_directory() / "debian" / f"{name}-{key}"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
            unpack(fetch(packages, Path(scratch) / "archives", alone=alone), Path(scratch) / "root", without=without)
            shutil.move(Path(scratch) / "root", root)
    return root
