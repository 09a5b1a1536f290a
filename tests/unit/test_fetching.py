"""Fetching models from servers and registries that are slow, lie, redirect or send too much."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.certificates import write_certificate
from support.model_server import (
    PASSWORD,
    RAW_LAYER,
    USER,
    ModelServer,
    announcing,
    archive,
    asking_for,
    basic,
    digest,
    endless,
    guard,
    model_server,
    push,
    redirecting,
    reply,
    trickling,
)

from llmrouter.artefacts import builtin_model
from llmrouter.errors import FetchError, InvalidConfigError, ModelRejectedError
from llmrouter.fetching.__main__ import fetch_here
from llmrouter.fetching.child import fetch
from llmrouter.fetching.hosts import HostRule, Hosts, check_address, place_of
from llmrouter.fetching.wanted import Credentials, Wanted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODEL, MANIFEST = builtin_model("policy", "marginal-cost")
SHA256 = hashlib.sha256(MODEL).hexdigest()
ONNX, JSON = "application/octet-stream", "application/json"


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


def wanted(server: ModelServer, **changes: Any) -> Wanted:  # noqa: ANN401 - fields of any type
    values: dict[str, Any] = {
        "kind": "policy",
        "sha256": SHA256,
        "max_bytes": 1_000_000,
        "allowed_hosts": (f"http://127.0.0.1:{server.port}",),
    }
    return Wanted.model_validate(values | changes)


def at(server: ModelServer, url: str, **changes: Any) -> Wanted:  # noqa: ANN401
    return wanted(server, http={"url": url}, **changes)


def oci(server: ModelServer, reference: str, **changes: Any) -> Wanted:  # noqa: ANN401
    return wanted(server, oci={"reference": f"{server.host}/{reference}"}, **changes)


def refusal(question: Wanted) -> tuple[str, str]:
    with pytest.raises((FetchError, ModelRejectedError)) as caught:
        fetch_here(question)
    return str(caught.value.reason), str(caught.value)


def test_a_model_and_its_manifest_come_from_a_server(server: ModelServer) -> None:
    url = server.serve_model("/good", MODEL, MANIFEST)

    assert fetch_here(at(server, url)) == (MODEL, MANIFEST)
    assert fetch_here(wanted(server, http={"url": url, "manifestUrl": server.url("/good/manifest.json?v=1")}))


def test_a_redirect_on_the_same_host_is_followed(server: ModelServer) -> None:
    server.serve_model("/moved-to", MODEL, MANIFEST)
    url = server.act("/moved/model.onnx", redirecting("/moved-to/model.onnx"), MANIFEST)

    assert fetch_here(at(server, url)).model == MODEL


def test_a_redirect_to_another_place_is_not_followed(server: ModelServer) -> None:
    with model_server() as other:
        target = other.serve_model("/inside", MODEL, MANIFEST)
        url = server.act("/away/model.onnx", redirecting(target), MANIFEST)
        hosts = (f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{other.port}")

        reason, message = refusal(at(server, url, allowed_hosts=hosts))

        assert reason == "RedirectRefused"
        assert str(other.port) not in message
        assert not other.asked


def test_a_circle_of_redirects_ends(server: ModelServer) -> None:
    url = server.act("/circle/model.onnx", redirecting("/circle/model.onnx"), MANIFEST)

    assert refusal(at(server, url))[0] == "RedirectRefused"
    assert server.asked["/circle/model.onnx"] == 4


@pytest.mark.parametrize(
    ("announced", "sent", "reason", "says"),
    [
        (2 * 2**30, 0, "ModelTooLarge", "announces 2147483648 bytes, more than 1000000"),
        (len(MODEL), 100, "FetchFailed", f"announces {len(MODEL)} bytes and sends 100"),
        (100, len(MODEL), "DigestMismatch", "asked for was"),
    ],
)
def test_a_server_that_lies_about_the_length(
    server: ModelServer, *, announced: int, sent: int, reason: str, says: str
) -> None:
    url = server.act("/liar/model.onnx", announcing(announced, MODEL[:sent]), MANIFEST)

    told = refusal(at(server, url))

    assert told[0] == reason
    assert says in told[1]


def test_what_never_ends_is_cut_off(server: ModelServer) -> None:
    url = server.act("/endless/model.onnx", endless(server), MANIFEST)

    assert refusal(at(server, url)) == ("ModelTooLarge", "the server sends more than 1000000 bytes")


def test_an_encoded_answer_is_refused(server: ModelServer) -> None:
    url = server.act("/zip/model.onnx", lambda one: reply(one, 200, MODEL, Content_Encoding="gzip"), MANIFEST)

    assert refusal(at(server, url))[0] == "FetchFailed"
    assert server.headers["Accept-Encoding"] == "identity"


def test_what_is_not_there_and_what_fails(server: ModelServer) -> None:
    assert refusal(at(server, server.url("/none/model.onnx")))[0] == "ModelNotFound"
    url = server.act("/sick/model.onnx", lambda one: reply(one, 500, b"a secret stack trace"), MANIFEST)
    assert refusal(at(server, url)) == ("FetchFailed", "the model: the server answers 500")
    assert refusal(at(server, "http://127.0.0.1:1/m", allowed_hosts=("http://127.0.0.1:1",)))[0] == "FetchFailed"


def test_other_bytes_and_other_manifests_are_refused_without_showing_them(server: ModelServer) -> None:
    url = server.serve_model("/other", b"root:x:0:0", b'{"secretField": 1}')
    reason, message = refusal(at(server, url))
    assert (reason, "secretField" in message, "root" in message) == ("DigestMismatch", False, False)

    url = server.serve_model("/spoiled", MODEL, json.dumps(json.loads(MANIFEST) | {"sha256": "0" * 64}).encode())
    assert refusal(at(server, url))[0] == "ModelCorrupt"
    url = server.serve_model("/kind", MODEL, MANIFEST)
    assert refusal(at(server, url, kind="output_length"))[0] == "ManifestInvalid"


def test_credentials_go_to_their_host_alone(server: ModelServer) -> None:
    server.files["/private/manifest.json"] = MANIFEST
    server.acts["/private/model.onnx"] = asking_for(basic(), MODEL)
    url = server.url("/private/model.onnx")
    mine = Credentials(host=server.host, username=USER, password=PASSWORD)

    assert fetch_here(at(server, url, credentials=mine)).model == MODEL
    assert refusal(at(server, url))[0] == "CredentialsRefused"
    assert (
        refusal(at(server, url, credentials=mine.model_copy(update={"host": "other.test"})))[0] == "CredentialsRefused"
    )
    assert "Authorization" not in server.headers


def test_the_manifest_is_on_the_same_host(server: ModelServer) -> None:
    url = server.serve_model("/apart", MODEL, MANIFEST)
    question = wanted(server, http={"url": url, "manifestUrl": "http://10.0.0.1/secrets.json"})

    assert refusal(question)[0] == "HostNotAllowed"


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ((), "https://models.test/m"),
        (("models.test",), "http://models.test/m"),
        (("models.test",), "https://models.test:8443/m"),
        (("*.models.test",), "https://models.test/m"),
        (("*.models.test",), "https://evilmodels.test/m"),
        (("*",), "http://models.test/m"),
    ],
)
def test_a_host_that_is_not_allowed_is_not_asked(allowed: tuple[str, ...], url: str) -> None:
    with pytest.raises(FetchError) as caught:
        Hosts(allowed).rule_for(place_of(url))
    assert caught.value.reason == "HostNotAllowed"


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        (("models.test",), "https://Models.test/m"),
        (("models.test:8443",), "https://models.test:8443/m"),
        (("http://models.test",), "http://models.test/m"),
        (("*.models.test",), "https://a.b.models.test/m"),
        (("*",), "https://any.test/m"),
        (("http://[::1]:80",), "http://[::1]/m"),
    ],
)
def test_a_host_that_is_allowed(allowed: tuple[str, ...], url: str) -> None:
    assert Hosts(allowed).rule_for(place_of(url))


@pytest.mark.parametrize("entry", ["", "ftp://a.test", "a.test/path", "a b", "*a.test", "https://a.test"])
def test_an_entry_that_is_none_is_named(entry: str) -> None:
    with pytest.raises(InvalidConfigError, match="allowed hosts"):
        HostRule.parse(entry)


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("metadata.test", "169.254.169.254"),
        ("metadata.test", "fe80::1%eth0"),
        ("metadata.test", "fd00:ec2::254"),
        ("metadata.test", "100.100.100.200"),
        ("169.254.169.254", "169.254.169.254"),
        ("metadata.test", "::ffff:169.254.169.254"),
        ("metadata.test", "64:ff9b::a9fe:a9fe"),
        ("models.test", "0.0.0.0"),  # noqa: S104 - an address to refuse
        ("models.test", "224.0.0.1"),
        ("models.test", "127.0.0.1"),
        ("models.test", "::1"),
        ("*.test", "127.0.0.1"),
        ("*", "10.0.0.1"),
        ("*", "192.168.1.1"),
        ("*", "fd12::1"),
    ],
)
def test_an_address_that_is_refused(entry: str, address: str) -> None:
    with pytest.raises(FetchError) as caught:
        check_address(HostRule.parse(entry), address)
    assert caught.value.reason == "AddressRefused"


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("models.test", "10.0.0.1"),
        ("*.svc", "10.96.0.9"),
        ("*", "93.184.216.34"),
        ("*", "2606:2800:220:1::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "::1"),
    ],
)
def test_an_address_that_is_taken(entry: str, address: str) -> None:
    check_address(HostRule.parse(entry), address)


def test_a_name_that_resolves_to_this_machine_is_not_asked(server: ModelServer) -> None:
    url = f"http://{os.uname().nodename}:{server.port}/good/model.onnx"
    before = server.asked.total()

    assert refusal(at(server, url, allowed_hosts=(f"http://*:{server.port}",)))[0] in {"AddressRefused", "FetchFailed"}
    assert server.asked.total() == before


def test_an_artefact_of_files_comes_from_a_registry(server: ModelServer) -> None:
    pushed = push(server, "models/cost", "3", [(MODEL, ONNX, "model.onnx"), (MANIFEST, JSON, "manifest.json")])

    assert fetch_here(oci(server, "models/cost:3")) == (MODEL, MANIFEST)
    assert fetch_here(oci(server, f"models/cost:3@{pushed}")) == (MODEL, MANIFEST)


@pytest.mark.parametrize("compressed", [True, False])
def test_an_image_comes_from_a_registry(server: ModelServer, *, compressed: bool) -> None:
    old = archive({"models/model.onnx": b"old", "etc/passwd": b"x"}, compressed=compressed)
    new = archive({"models/model.onnx": MODEL, "models/manifest.json": MANIFEST}, compressed=compressed)
    push(server, "image", "1", [(old, RAW_LAYER, None), (new, RAW_LAYER, None)], index=True)

    assert fetch_here(oci(server, "image:1")) == (MODEL, MANIFEST)


def test_a_registry_with_tokens_and_storage_elsewhere(server: ModelServer) -> None:
    push(server, "private", "1", [(MODEL, ONNX, "model.onnx"), (MANIFEST, JSON, "manifest.json")])
    guard(server, "private")
    mine = Credentials(host=server.host, username=USER, password=PASSWORD)
    with model_server() as storage:
        target = storage.serve_model("/elsewhere", MODEL, MANIFEST)
        server.acts[f"/v2/private/blobs/{digest(MODEL)}"] = redirecting(target)
        hosts = (f"http://127.0.0.1:{server.port}", f"http://127.0.0.1:{storage.port}")

        assert fetch_here(oci(server, "private:1", credentials=mine, allowed_hosts=hosts)) == (MODEL, MANIFEST)
        assert "Authorization" not in storage.headers
        assert refusal(oci(server, "private:1", credentials=mine))[0] == "HostNotAllowed"
    assert refusal(oci(server, "private:1"))[0] == "CredentialsRefused"


def test_a_registry_that_lies(server: ModelServer) -> None:
    layers = [(MODEL, ONNX, "model.onnx"), (MANIFEST, JSON, "manifest.json")]
    pushed = push(server, "liar", "1", layers)  # type: ignore[arg-type]
    server.files[f"/v2/liar/blobs/{digest(MODEL)}"] = b"x" * len(MODEL)
    assert refusal(oci(server, "liar:1"))[0] == "DigestMismatch"

    server.files[f"/v2/liar/manifests/{pushed}"] += b" "
    assert refusal(oci(server, f"liar@{pushed}"))[0] == "DigestMismatch"

    push(server, "liar", "2", [(MANIFEST, JSON, "manifest.json")])
    assert refusal(oci(server, "liar:2")) == ("ModelNotFound", "no layer holds model.onnx")

    server.files["/v2/liar/manifests/3"] = b"[]"
    assert refusal(oci(server, "liar:3"))[0] == "FetchFailed"

    huge = {"mediaType": ONNX, "digest": digest(b""), "size": 2**31, "annotations": {}}
    huge["annotations"] = {"org.opencontainers.image.title": "model.onnx"}
    server.files["/v2/liar/manifests/4"] = json.dumps({"layers": [huge]}).encode()
    assert refusal(oci(server, "liar:4"))[0] == "ModelTooLarge"


def test_a_layer_that_grows_beyond_all_bounds_is_refused(server: ModelServer) -> None:
    bomb = archive({"zeros": bytes(20_000_000)})
    push(server, "bomb", "1", [(bomb, RAW_LAYER, None)])
    assert len(bomb) < 100_000

    assert refusal(oci(server, "bomb:1"))[0] == "ModelTooLarge"
    push(server, "bomb", "2", [(archive({"model.onnx": bytes(2_000_000)}), RAW_LAYER, None)])
    assert refusal(oci(server, "bomb:2")) == ("ModelTooLarge", "model.onnx has 2000000 bytes, more than 1000000")
    push(server, "bomb", "3", [(b"no archive", RAW_LAYER, None)])
    assert refusal(oci(server, "bomb:3"))[0] == "FetchFailed"


async def test_the_child_brings_what_was_checked(server: ModelServer) -> None:
    url = server.serve_model("/child", MODEL, MANIFEST)

    assert await fetch(at(server, url)) == (MODEL, MANIFEST)
    with pytest.raises(FetchError) as caught:
        await fetch(at(server, url, sha256="0" * 64))
    assert caught.value.reason == "DigestMismatch"


async def test_the_child_gives_a_server_that_trickles_no_more_than_its_time(server: ModelServer) -> None:
    url = server.act("/trickle/model.onnx", trickling(server), MANIFEST)

    with pytest.raises(FetchError) as caught:
        await fetch(at(server, url, seconds=0.3))

    assert caught.value.reason == "FetchTimeout"


async def test_a_child_that_dies_is_a_reason(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(FetchError, match="ended without an answer"):
        await fetch(at(server, server.url("/good/model.onnx")))


async def test_the_child_trusts_the_authorities_it_is_given(tmp_path: Path) -> None:
    write_certificate(tmp_path, names=["localhost"])
    with model_server(tmp_path) as secure:
        secure.serve_model("/tls", MODEL, MANIFEST)
        url = f"https://localhost:{secure.port}/tls/model.onnx"
        question = at(secure, url, allowed_hosts=(f"localhost:{secure.port}",))
        trusting = dict(os.environ) | {"LLMROUTER_MODEL_AUTHORITIES": str(tmp_path / "tls.crt")}

        assert (await fetch(question, trusting)).model == MODEL
        with pytest.raises(FetchError, match="certificate"):
            await fetch(question)


def test_the_question_holds_no_password_in_its_words() -> None:
    said = io.StringIO()
    print(Credentials(host="a.test", username="me", password="hunter2"), file=said)  # noqa: S106

    assert "hunter2" not in said.getvalue()
