"""A certificate authority of the run's own, and what it signs, made with the openssl program."""

from dataclasses import dataclass
from pathlib import Path

from llmrouter.testbed.cluster.processes import run

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS = "30"


def extensions(*, authority: bool, ips: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> str:
    """The openssl configuration of one certificate: an authority's, or one for serving and calling."""
    lines = [
        "[req]",
        "distinguished_name = subject",
        "x509_extensions = made",
        "prompt = no",
        "[subject]",
        "CN = replaced",
        "[made]",
    ]
    if authority:
        lines += ["basicConstraints = critical, CA:TRUE", "keyUsage = critical, keyCertSign, cRLSign"]
    else:
        lines += ["basicConstraints = critical, CA:FALSE", "keyUsage = critical, digitalSignature"]
        lines += ["extendedKeyUsage = serverAuth, clientAuth"]
    lines += ["subjectKeyIdentifier = hash", "authorityKeyIdentifier = keyid:always"]
    alternatives = [f"IP:{ip}" for ip in ips] + [f"DNS:{name}" for name in names]
    if alternatives:
        lines.append(f"subjectAltName = {', '.join(alternatives)}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates that only this run trusts. Its folder is private to the user."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder
        self.pair = self._make("ca", "/CN=llmrouter-testbed", extensions(authority=True))

    def sign(self, name: str, *, subject: str, ips: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Pair:
        """A new key and its certificate, for serving at `ips` and `names` and for calling as `subject`."""
        by_authority = ("-CA", str(self.pair.certificate), "-CAkey", str(self.pair.key))
        return self._make(name, subject, extensions(authority=False, ips=ips, names=names), *by_authority)

    def signing_key(self, name: str) -> Pair:
        """A bare key pair, for service account tokens; `certificate` is the public key."""
        pair = Pair(self._folder / f"{name}.pub", self._folder / f"{name}.key")
        run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", pair.key])
        run(["openssl", "pkey", "-in", pair.key, "-pubout", "-out", pair.certificate])
        pair.key.chmod(0o600)
        return pair

    def _make(self, name: str, subject: str, configuration: str, *more: str) -> Pair:
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        config = self._folder / f"{name}.cnf"
        config.write_text(configuration)
        files = ("-keyout", str(pair.key), "-out", str(pair.certificate))
        run(["openssl", "req", "-x509", "-config", config, *_KEY, "-days", _DAYS, "-subj", subject, *files, *more])
        pair.key.chmod(0o600)
        return pair
