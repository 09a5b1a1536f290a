from pathlib import Path

import pytest

from llmrouter.testbed.cluster.debian import unpack
from llmrouter.testbed.cluster.images import CONTEXT, context_key, image_names, pinned_uv, trusted_certificates
from llmrouter.testbed.cluster.places import repository_root


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in CONTEXT:
        if "." in name or name == "Dockerfile":
            (tmp_path / name).write_text(name)
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "code.py").write_text(name)
    return tmp_path


def test_the_key_follows_the_sources(sources: Path) -> None:
    before = context_key(sources)

    (sources / "llmrouter" / "__pycache__").mkdir()
    (sources / "llmrouter" / "__pycache__" / "code.pyc").write_bytes(b"compiled")
    (sources / "README.md").write_text("words")
    assert context_key(sources) == before

    (sources / "llmrouter" / "code.py").write_text("changed")
    assert context_key(sources) != before


def test_a_moved_line_between_files_changes_the_key(sources: Path) -> None:
    before = context_key(sources)

    (sources / "models" / "code.py").rename(sources / "models" / "other.py")

    assert context_key(sources) != before


def test_names_are_local_and_carry_the_key() -> None:
    names = image_names()

    assert all(name.startswith("localhost/llmrouter-") for name in names.all())
    assert names.operator.partition(":")[2] == names.router.partition(":")[2]


def test_the_dockerfile_says_which_uv() -> None:
    assert pinned_uv((repository_root() / "Dockerfile").read_text()).startswith("uv==")


def test_everything_of_the_context_reaches_the_builder() -> None:
    ignored = (repository_root() / ".dockerignore").read_text().split()

    assert ignored[0] == "*"
    assert {name for name in CONTEXT if "docker" not in name.lower()} == {
        word[1:] for word in ignored if word[0] == "!"
    }


def test_the_machine_says_whom_to_trust(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("certificates")

    assert trusted_certificates({"SSL_CERT_FILE": str(bundle)}) == bundle
    assert trusted_certificates({"SSL_CERT_FILE": "/nowhere.pem"}) != Path("/nowhere.pem")


def test_unwanted_packages_are_not_unpacked(tmp_path: Path) -> None:
    broken = [tmp_path / "perl-base_5.36_amd64.deb", tmp_path / "libperl5.36_5.36_amd64.deb"]
    for archive in broken:
        archive.write_bytes(b"no package")

    unpack(broken, tmp_path / "root", without=("*perl*",))

    assert list((tmp_path / "root").iterdir()) == []
