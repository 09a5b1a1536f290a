"""TLS as gateways have it towards pickers: whatever certificate is shown is taken."""

from __future__ import annotations

import ssl

import grpc
from cryptography import x509

from llmrouter.errors import InvalidInputError

PATIENCE_S = 10.0


def credentials_of(address: str) -> tuple[grpc.ChannelCredentials, tuple[tuple[str, str], ...]]:
    """Credentials that trust the certificate shown at ``host:port`` alone, and the channel's options that go with them.

    Blocks. gRPC cannot leave verification out, so what is shown now is what is trusted then.

    Raises:
        InvalidInputError: nobody answers there with TLS.
    """
    host, _, port = address.rpartition(":")
    try:
        shown = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=PATIENCE_S).encode()
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{address}: no TLS there: {error}") from error
    names = _names(x509.load_pem_x509_certificate(shown))
    options = (("grpc.ssl_target_name_override", names[0].replace("*", "any")),) if names else ()
    return grpc.ssl_channel_credentials(shown), options


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []  # then its subject's name is the host's, or nothing is
    return found.value.get_values_for_type(x509.DNSName)
