"""Certificates in folders, as people and as the kubelet put them there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization

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
