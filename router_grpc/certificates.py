"""The certificate of a TLS port: made at start, or mounted and read again when it changes.

One certificate serves both transports: the standard library's ``SSLContext`` and gRPC's credentials. Connections that
are open keep the one they began with.
"""

from __future__ import annotations

import logging
import os
import ssl
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llmrouter.errors import InvalidConfigError
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from llmrouter.metrics import RouterMetrics

CHAIN_FILE, KEY_FILE = "tls.crt", "tls.key"
"""Names in a Secret of type kubernetes.io/tls."""
OWN_DAYS = 3650
"""Life of a certificate made at start: longer than any pod's, and nobody verifies it."""
MAX_FILE_BYTES = 1_048_576
ALPN = "h2"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a TLS port serves: ``folder`` of the mounted certificate, ``names`` of the one made without it."""

    names: tuple[str, ...]
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A chain and its key, in PEM, that belong together."""

    chain: bytes
    key: bytes
    expires_at: datetime


def self_signed(names: Sequence[str], *, now: datetime, days: int = OWN_DAYS) -> Certificate:
    """A certificate for DNS ``names``, the first its subject, signed with a key of its own (P-256)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    expires_at = now + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(expires_at)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    return Certificate(
        chain=made.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain),
        expires_at=expires_at,
    )


def read_certificate(folder: Path, *, now: datetime) -> Certificate:
    """The certificate in a folder; raises InvalidConfigError where there is none, or none that can be served."""
    return _checked(_read_pair(folder), now=now, where=str(folder))


class Certificates:
    """The certificate in force. What cannot be served changes nothing: it is counted, logged and said.

    ``context`` serves every new connection with the one in force.
    """

    def __init__(self, tls: Tls, *, metrics: RouterMetrics, now: Callable[[], datetime]) -> None:
        self._folder = tls.folder
        self._metrics = metrics
        self._now = now
        self._seen: tuple[bytes, bytes] | str = "nothing"
        self._refused: InvalidConfigError | None = None
        self._is_own = True
        self.current = self_signed(tls.names, now=now())
        self._put_in_force(self.current)
        self.context = _new_context()
        self.context.sni_callback = self._hand_over
        self.refresh()

    @property
    def readiness(self) -> Readiness:
        """Whether the certificate is the declared one and still holds."""
        until = f"until {self.current.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        if self._refused is not None:
            stays = "one made at start" if self._is_own else "the one before"
            return Readiness(
                ready=False, reason=self._refused.reason, message=f"{self._refused}; {stays} is served, {until}"
            )
        if self.current.expires_at <= self._now():
            return Readiness(ready=False, reason="CertificateExpired", message=f"it was good {until}")
        return Readiness(ready=True, reason="SelfSigned" if self._is_own else "Mounted", message=f"good {until}")

    def refresh(self) -> None:
        """Takes up the mounted certificate if it is another one than was last seen; on the event loop's thread."""
        if self._folder is None:
            return
        pair = _read_pair(self._folder)
        if pair == self._seen:
            return
        self._seen = pair
        try:
            found = _checked(pair, now=self._now(), where=str(self._folder))
        except InvalidConfigError as error:
            self._refused = error
            self._metrics.errors.labels("certificate").inc()
            _log.error("certificate refused", extra={"reason": error.reason, "detail": str(error)})
            return
        self._refused, self._is_own = None, False
        self._put_in_force(found)
        _log.info("certificate in force", extra={"expires_at": found.expires_at.isoformat()})

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of a gRPC port: every new connection gets the certificate in force."""
        given = self.current

        def newer() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if given is self.current:
                return None
            given = self.current
            return _configuration(given)

        return grpc.dynamic_ssl_server_credentials(_configuration(given), newer)  # type: ignore[arg-type]

    def _hand_over(self, connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        """Gives a beginning connection the context in force; called whether or not the client names a server.

        A context that already has a certificate would keep it beside one with another kind of key, and serve either.
        """
        del name, first
        connection.context = self._in_force

    def _put_in_force(self, found: Certificate) -> None:
        self._in_force = _new_context()
        _load(self._in_force, found)
        self.current = found
        self._metrics.certificate_expiry_seconds.set(found.expires_at.timestamp())


def _read_pair(folder: Path) -> tuple[bytes, bytes] | str:
    """Both files, or why not. A mounted Secret changes by one link: both are read behind what it pointed to."""
    try:
        link = folder / "..data"
        place = link.resolve() if link.is_symlink() else folder
        pair = _read(place / CHAIN_FILE), _read(place / KEY_FILE)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return pair


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)


def _checked(pair: tuple[bytes, bytes] | str, *, now: datetime, where: str) -> Certificate:
    if isinstance(pair, str):
        raise InvalidConfigError(f"certificate: {pair}", reason="CertificateMissing")
    chain, key = pair
    try:
        leaf = x509.load_pem_x509_certificate(chain)
        found = Certificate(chain=chain, key=key, expires_at=leaf.not_valid_after_utc)
        _load(_new_context(), found)  # what fails half-way would leave a context in use without its key
    except (ValueError, ssl.SSLError) as error:
        raise InvalidConfigError(
            f"certificate in {where}: {CHAIN_FILE} and {KEY_FILE} are no pair that can be served: {error}",
            reason="CertificateInvalid",
        ) from error
    if found.expires_at <= now:
        raise InvalidConfigError(
            f"certificate in {where}: expired at {found.expires_at:%Y-%m-%dT%H:%M:%SZ}", reason="CertificateExpired"
        )
    return found


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN])
    return context


def _load(context: ssl.SSLContext, found: Certificate) -> None:
    """The standard library reads files alone: these are gone when it has."""

    def no_password() -> str:
        raise ValueError("the key is encrypted")

    with _as_file(found.chain) as chain, _as_file(found.key) as key:
        context.load_cert_chain(chain, key, password=no_password)


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path to the bytes; in memory where the system can, for a key belongs on no disk."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("certificate")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


def _configuration(found: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(found.key, found.chain)])
