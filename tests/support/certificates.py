"""Certificates in folders, as people and as the kubelet put them there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from router_grpc.certificates import CHAIN_FILE, KEY_FILE, self_signed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write_certificate(
    folder: Path,
    *,
    names: Sequence[str],
    now: datetime | None = None,
    days: int = 90,
    password: bytes | None = None,
) -> bytes:
    """A certificate of ``days`` from ``now`` on, and its key; returns the certificate."""
    made = self_signed(names, now=now or datetime.now(UTC), days=days)
    key = made.key
    if password is not None:
        key = serialization.load_pem_private_key(key, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password),
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHAIN_FILE).write_bytes(made.chain)
    (folder / KEY_FILE).write_bytes(key)
    return made.chain


def write_rsa_certificate(folder: Path, *, names: Sequence[str], days: int = 90) -> bytes:
    """The same with an RSA key."""
    now = datetime.now(UTC)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    chain = made.public_bytes(serialization.Encoding.PEM)
    (folder / CHAIN_FILE).write_bytes(chain)
    (folder / KEY_FILE).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return chain


def link_secret(
    folder: Path, version: str, *, names: Sequence[str], now: datetime | None = None, days: int = 90
) -> Path:
    """What the kubelet does of a Secret: a folder of its own for each version, and a link that is swapped at once."""
    place = folder / f"..{version}"
    write_certificate(place, names=names, now=now, days=days)
    link = folder / "..new"
    link.symlink_to(place.name)
    link.replace(folder / "..data")
    for name in (CHAIN_FILE, KEY_FILE):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    return place


def write_signed_certificate(folder: Path, *, name: str) -> None:
    """A certificate of one name that an authority which nobody knows has signed."""
    now = datetime.now(UTC)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    (folder / CHAIN_FILE).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / KEY_FILE).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
