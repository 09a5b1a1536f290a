"""GET with bounds: checked addresses, no surprising redirects, no more bytes than asked for."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from llmrouter.errors import FetchError
from llmrouter.fetching.hosts import check_address, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.fetching.hosts import HostRule, Hosts, Place

AUTHORITIES = "LLMROUTER_MODEL_AUTHORITIES"
"""In the environment: a file with authorities to trust beside the system's own."""
SILENCE_S = 10.0
"""How long a server may say nothing."""
MAX_REDIRECTS = 3
CHUNK_BYTES = 65_536
REDIRECTS = frozenset({301, 302, 303, 307, 308})
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 200, 401, 403, 404


class Answer(NamedTuple):
    """Status, headers and body, which is empty unless the status is 200."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def ok(self, what: str) -> bytes:
        """The body; raises FetchError for any status but 200."""
        if self.status == OK:
            return self.body
        if self.status in {UNAUTHORIZED, FORBIDDEN}:
            raise FetchError("CredentialsRefused", f"{what}: the server answers {self.status}")
        if self.status == NOT_FOUND:
            raise FetchError("ModelNotFound", f"{what}: the server answers 404")
        raise FetchError("FetchFailed", f"{what}: the server answers {self.status}")


@dataclass(frozen=True, slots=True)
class Client:
    """Asks the hosts that may be asked."""

    hosts: Hosts

    def get(
        self, url: str, *, limit: int, headers: Mapping[str, str] | None = None, may_leave_host: bool = False
    ) -> Answer:
        """The answer, of at most ``limit`` bytes.

        Redirects are followed on the same scheme, host and port; with ``may_leave_host`` to any allowed host, which
        gets no ``Authorization``. Raises FetchError.
        """
        sent = dict(headers or {})
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._get_once(url, sent, limit)
            if answer.status not in REDIRECTS:
                return answer
            target = urljoin(url, answer.headers.get("Location", ""))
            if place_of(target) != place_of(url):
                if not may_leave_host:
                    raise FetchError("RedirectRefused", f"{place_of(url).host} redirects to another place")
                sent.pop("Authorization", None)
            url = target
        raise FetchError("RedirectRefused", f"{place_of(url).host} redirects more than {MAX_REDIRECTS} times")

    def _get_once(self, url: str, headers: Mapping[str, str], limit: int) -> Answer:
        place = place_of(url)
        connection = _Connection(place, self.hosts.rule_for(place))
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request(
                "GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "llmrouter", **headers}
            )
            response = connection.getresponse()
            body = _read(response, limit) if response.status == OK else b""
            return Answer(response.status, response.headers, body)
        except ssl.SSLCertVerificationError as error:
            raise FetchError("FetchFailed", f"{place.host}: its certificate: {error.verify_message}") from error
        except TimeoutError as error:
            raise FetchError("FetchTimeout", f"{place.host} said nothing for {SILENCE_S:g} s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError("FetchFailed", f"{place.host}: {type(error).__name__}") from error
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked: what a name resolves to later is not asked."""

    def __init__(self, place: Place, rule: HostRule) -> None:
        super().__init__(place.host, place.port, timeout=SILENCE_S)
        self._place = place
        self._rule = rule

    def connect(self) -> None:
        found = socket.getaddrinfo(self._place.host, self._place.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        for address in addresses:
            check_address(self._rule, address)
        self.sock = self._connect_to(addresses)
        if self._place.scheme == "https":
            context = ssl.create_default_context()
            if (authorities := os.environ.get(AUTHORITIES)) is not None:
                context.load_verify_locations(authorities)
            self.sock = context.wrap_socket(self.sock, server_hostname=self._place.host)

    def _connect_to(self, addresses: list[str]) -> socket.socket:
        """The first address that answers; the last one's error where none does."""
        for address in addresses[:-1]:
            try:
                return socket.create_connection((address, self._place.port), timeout=SILENCE_S)
            except OSError:
                continue  # the next address may answer; the last one says why not
        return socket.create_connection((addresses[-1], self._place.port), timeout=SILENCE_S)


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    """The body; raises FetchError where it is longer than ``limit``, shorter than promised, or encoded."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise FetchError("FetchFailed", "the server encodes what was to be sent as it is")
    promised = response.length
    if promised is not None and promised > limit:
        raise FetchError("ModelTooLarge", f"the server announces {promised} bytes, more than {limit}")
    body = bytearray()
    while chunk := response.read(CHUNK_BYTES):
        body += chunk
        if len(body) > limit:
            raise FetchError("ModelTooLarge", f"the server sends more than {limit} bytes")
    if promised is not None and len(body) < promised:
        raise FetchError("FetchFailed", f"the server announces {promised} bytes and sends {len(body)}")
    return bytes(body)
