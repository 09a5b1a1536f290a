"""TLS as gateways have it towards pickers: whatever certificate is shown is taken."""

from __future__ import annotations

import socket
import ssl

import grpc

from llmrouter.errors import InvalidInputError

PATIENCE_S = 10.0


def credentials_of(address: str) -> tuple[grpc.ChannelCredentials, tuple[tuple[str, str], ...]]:
    """Credentials that trust the certificate shown at ``host:port`` alone, and the channel's options that go with them.

    Blocks. gRPC cannot leave verification out, so what is shown now is what is trusted then.

    Raises:
        InvalidInputError: nobody answers there with TLS, or what is shown has expired.
    """
    host, _, port = address.rpartition(":")
    try:
        at = (host.strip("[]"), int(port))
        shown = ssl.get_server_certificate(at, timeout=PATIENCE_S)
        names = _names(at, shown)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{address}: no TLS there: {error}") from error
    options = (("grpc.ssl_target_name_override", names[0].replace("*", "any")),) if names else ()
    return grpc.ssl_channel_credentials(shown.encode()), options


def _names(at: tuple[str, int], shown: str) -> list[str]:
    """DNS names of the certificate; none where it has none, and then it is the host's or nobody's."""
    context = ssl.create_default_context(cadata=shown)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(at, timeout=PATIENCE_S) as plain, context.wrap_socket(plain) as connection:
        said = connection.getpeercert() or {}
    alternatives = said.get("subjectAltName", ())
    return [str(entry[1]) for entry in alternatives if entry[0] == "DNS"]
