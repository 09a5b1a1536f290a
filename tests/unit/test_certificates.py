"""Certificates of a TLS port: made, mounted, renewed, broken, expired."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry
from support.certificates import link_secret, write_certificate, write_rsa_certificate

from llmrouter import cli
from llmrouter.errors import InvalidConfigError
from llmrouter.metrics import RouterMetrics
from router_grpc.certificates import ALPN, Certificates, Tls, read_certificate, self_signed

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("llm-router", "llm-router.ns.svc")


@dataclass
class Served:
    """Certificates whose clock and counters the test holds."""

    folder: Path | None
    now: datetime = NOW
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        metrics = RouterMetrics(self.registry)
        self.certificates = Certificates(Tls(NAMES, self.folder), metrics=metrics, now=lambda: self.now)

    @property
    def names(self) -> list[str]:
        """Of the certificate in force."""
        return names_of(self.certificates.current.chain)

    @property
    def said(self) -> tuple[bool, str]:
        found = self.certificates.readiness
        return found.ready, found.reason

    def count(self) -> float:
        return self.registry.get_sample_value("llmrouter_errors_total", {"part": "certificate"}) or 0.0

    def expiry(self) -> float | None:
        return self.registry.get_sample_value("llmrouter_certificate_expiry_seconds")


def names_of(chain: bytes) -> list[str]:
    leaf = x509.load_pem_x509_certificate(chain)
    return leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)


def greet(server: ssl.SSLContext, roots: bytes, name: str | None) -> str | None:
    """A handshake in memory with a client that verifies, and names the server or not; the protocol agreed on."""
    client = ssl.create_default_context(cadata=roots.decode())
    client.check_hostname = name is not None
    client.set_alpn_protocols([ALPN])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return theirs.selected_alpn_protocol()


def test_a_certificate_made_at_start_names_the_service_and_speaks_http2() -> None:
    served = Served(None)
    assert served.names == list(NAMES)
    assert served.said == (True, "SelfSigned")
    assert served.expiry() == served.certificates.current.expires_at.timestamp()
    made = self_signed(NAMES, now=datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([ALPN])
    assert made.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    real = Served(None, now=datetime.now(UTC))
    assert greet(real.certificates.context, real.certificates.current.chain, NAMES[1]) == ALPN


def test_no_two_routers_make_the_same() -> None:
    assert Served(None).certificates.current.key != Served(None).certificates.current.key


def test_a_mounted_one_is_served_and_its_renewal_too(tmp_path: Path) -> None:
    link_secret(tmp_path, "first", names=("one",), now=NOW)
    served = Served(tmp_path)
    assert (served.names, served.said) == (["one"], (True, "Mounted"))
    context = served.certificates.context
    link_secret(tmp_path, "second", names=("two",), now=NOW, days=30)
    served.certificates.refresh()
    assert (served.names, served.said) == (["two"], (True, "Mounted"))
    assert served.expiry() == (NOW + timedelta(days=30)).timestamp()
    assert served.certificates.context is context
    assert served.count() == 0


def test_a_renewal_with_another_kind_of_key_leaves_none_of_the_one_before(tmp_path: Path) -> None:
    write_certificate(tmp_path, names=("one",))
    served = Served(tmp_path, now=datetime.now(UTC))
    before = served.certificates.current.chain
    newer = write_rsa_certificate(tmp_path, names=("one",))
    served.certificates.refresh()
    for name in ("one", None):
        assert greet(served.certificates.context, newer, name) == ALPN
        with pytest.raises(ssl.SSLCertVerificationError):
            greet(served.certificates.context, before, name)


BROKEN = {
    "half a key": lambda place: (place / "tls.key").write_bytes((place / "tls.key").read_bytes()[:80]),
    "another's key": lambda place: (place / "tls.key").write_bytes(self_signed(("x",), now=NOW).key),
    "no certificate": lambda place: (place / "tls.crt").write_bytes(b"hello"),
    "an empty file": lambda place: (place / "tls.crt").write_bytes(b""),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_renewal_keeps_the_one_before(tmp_path: Path, case: str) -> None:
    link_secret(tmp_path, "first", names=("one",), now=datetime.now(UTC))
    served = Served(tmp_path, now=datetime.now(UTC))
    before = served.certificates.current
    BROKEN[case](link_secret(tmp_path, "second", names=("two",), now=datetime.now(UTC)))
    served.certificates.refresh()
    served.certificates.refresh()
    assert served.count() == 1, "told once, not at every look"
    assert served.said == (False, "CertificateInvalid")
    assert greet(served.certificates.context, before.chain, "one") == ALPN, "the context still has the old key"
    link_secret(tmp_path, "third", names=("three",), now=datetime.now(UTC))
    served.certificates.refresh()
    assert (served.names, served.said) == (["three"], (True, "Mounted"))


def test_a_secret_that_is_not_there_yet_is_taken_up_when_it_comes(tmp_path: Path) -> None:
    served = Served(tmp_path / "certificate")
    assert (served.names, served.said, served.count()) == (list(NAMES), (False, "CertificateMissing"), 1)
    assert "one made at start is served" in served.certificates.readiness.message
    write_certificate(tmp_path / "certificate", names=("late",), now=NOW)
    served.certificates.refresh()
    assert (served.names, served.said) == (["late"], (True, "Mounted"))


def test_an_expired_renewal_is_refused_and_one_that_expires_in_use_stays(tmp_path: Path) -> None:
    write_certificate(tmp_path, names=("one",), now=NOW, days=10)
    served = Served(tmp_path)
    write_certificate(tmp_path, names=("two",), now=NOW - timedelta(days=20), days=10)
    served.certificates.refresh()
    assert (served.names, served.said) == (["one"], (False, "CertificateExpired"))
    write_certificate(tmp_path, names=("three",), now=NOW, days=10)
    served.certificates.refresh()
    assert served.said == (True, "Mounted")
    served.now = NOW + timedelta(days=11)
    served.certificates.refresh()
    assert (served.names, served.said) == (["three"], (False, "CertificateExpired"))


def test_what_is_read_before_serving_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"tls\.crt: No such file or directory"):
        read_certificate(tmp_path, now=NOW)
    write_certificate(tmp_path, names=("one",), now=NOW)
    assert names_of(read_certificate(tmp_path, now=NOW).chain) == ["one"]


def test_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    write_certificate(tmp_path, names=("one",), now=NOW, password=b"secret")
    with pytest.raises(InvalidConfigError, match="encrypted"):
        read_certificate(tmp_path, now=NOW)


FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {name: llm}
spec:
  models: [{name: llama}]
  pools: [{name: main, endpoints: ["127.0.0.1:1"], profile: {name: llama-3.1-8b-rtx4090}}]
  policyRef: {name: policy}
  router: {replicas: 1}
  listeners: LISTENERS
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: policy}
spec: {type: LeastInFlight}
"""


@pytest.mark.parametrize(
    ("listeners", "said"),
    [
        ("{extProc: {}}", "tls.crt: No such file or directory"),
        ("{extProc: {secureServing: false}}", "--certificate: needs listeners.extProc with secureServing"),
        ("{}", "--certificate: needs listeners.extProc with secureServing"),
    ],
)
def test_standalone_a_folder_that_cannot_be_served_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], listeners: str, said: str
) -> None:
    (tmp_path / "router.yaml").write_text(FILE.replace("LISTENERS", listeners))
    words = ["serve", "--config", str(tmp_path / "router.yaml"), "--certificate", str(tmp_path / "none")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
