from pathlib import Path

import pytest

from llmrouter.testbed.cluster.binaries import PROGRAMS, Binaries, Module, build_key, parse_version
from llmrouter.testbed.cluster.places import cache_directory, repository_root, state_directory


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    folder = tmp_path / "modules" / "etcd"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text("module x\n")
    (folder / "go.sum").write_text("sum\n")
    return folder.parent


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_key_changes_with_what_is_built(modules: Path) -> None:
    plain = build_key(Module("etcd"), modules=modules, machine="x86_64")

    assert plain == build_key(Module("etcd"), modules=modules, machine="x86_64")
    assert plain.startswith("etcd-")
    assert plain != build_key(Module("etcd", "-s"), modules=modules, machine="x86_64")
    assert plain != build_key(Module("etcd"), modules=modules, machine="aarch64")
    (modules / "etcd" / "go.sum").write_text("another sum\n")
    assert plain != build_key(Module("etcd"), modules=modules, machine="x86_64")


def test_every_program_has_its_pinned_module() -> None:
    root = repository_root() / "tools" / "cluster"

    for known in PROGRAMS.values():
        text = (root / known.module.folder / "go.mod").read_text()
        assert known.package == "." or f"{known.package}\n" in text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Kubernetes v1.35.4", (1, 35)),
        ("etcd Version: 3.6.8\nGit SHA: x", (3, 6)),
        ("CoreDNS-1.12.4\nlinux/amd64", (1, 12)),
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("usage: etcd", None),
    ],
)
def test_versions_are_read_from_what_programs_say(said: str, expected: tuple[int, int] | None) -> None:
    assert parse_version(said) == expected


def test_a_program_of_the_assets_comes_first(modules: Path, tmp_path: Path) -> None:
    etcd = program(tmp_path / "assets" / "etcd", "anything")
    program(tmp_path / "bin" / "etcd", "etcd Version: 3.6.8")
    environment = {"KUBEBUILDER_ASSETS": str(tmp_path / "assets"), "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}

    found = Binaries(cache=tmp_path / "cache", modules=modules, environment=environment).find("etcd")

    assert found == etcd


@pytest.mark.parametrize(
    ("says", "used"), [("etcd Version: 3.6.8", True), ("etcd Version: 3.4.23", False), ("?", False)]
)
def test_a_program_on_the_path_is_used_if_it_is_recent(modules: Path, tmp_path: Path, says: str, used: bool) -> None:  # noqa: FBT001
    etcd = program(tmp_path / "bin" / "etcd", says)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}

    found = Binaries(cache=tmp_path / "cache", modules=modules, environment=environment).find("etcd")

    assert found == (etcd if used else None)


def test_a_built_program_is_found_in_the_cache(modules: Path, tmp_path: Path) -> None:
    key = build_key(PROGRAMS["etcd"].module, modules=modules)
    etcd = program(tmp_path / "cache" / "bin" / key / "etcd", "built")

    provided = Binaries(cache=tmp_path / "cache", modules=modules, environment={"PATH": "/usr/bin"}).provide(["etcd"])

    assert provided == {"etcd": etcd}


def test_the_environment_names_the_places() -> None:
    assert cache_directory({"LLMROUTER_CACHE": "/a"}) == Path("/a")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/llmrouter")
    assert cache_directory({}) == Path("~/.cache/llmrouter").expanduser()
    assert state_directory({"LLMROUTER_STATE": "/c"}) == Path("/c")
    assert state_directory({}) == Path("/var/tmp/llmrouter-cluster")  # noqa: S108
