"""``python -m llmrouter.fetching``: one question on standard input, one answer on standard output, then it ends.

It limits itself first: memory, processor time, open files, and not one byte into a file.
"""

from __future__ import annotations

import hashlib
import resource
import signal
import sys
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from pydantic import ValidationError

from llmrouter.errors import FetchError, InvalidConfigError, ModelRejectedError
from llmrouter.fetching.hosts import Hosts, place_of
from llmrouter.fetching.oci import Reference, Registry, basic_of
from llmrouter.fetching.transfer import Client
from llmrouter.fetching.wanted import Fetched, Told, Wanted
from llmrouter.manifest import MAX_MANIFEST_BYTES, Rejection, check_manifest, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.fetching.wanted import Credentials
    from llmrouter.model_sources import HttpModelRef

MAX_QUESTION_BYTES = 200_000
LIMITS = (
    (resource.RLIMIT_AS, 512 * 2**20),
    (resource.RLIMIT_CPU, 20),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
)


def limit_itself(limits: Sequence[tuple[int, int]] = LIMITS) -> None:
    """Takes this process what it does not need; what was less already stays."""
    for what, most in limits:
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def fetch_here(wanted: Wanted) -> Fetched:
    """The model, fetched by this very process and checked; raises FetchError or ModelRejectedError."""
    client = Client(Hosts(wanted.allowed_hosts))
    if wanted.oci is not None:
        reference = Reference.parse(wanted.oci.reference)
        credentials = _for_host(wanted.credentials, wanted.oci.host)
        fetched = Registry(client, reference, credentials).fetch(wanted.max_bytes)
    elif wanted.http is not None:
        fetched = _from_url(client, wanted.http, wanted)
    else:
        raise FetchError("FetchFailed", "no source to fetch from")
    sha256 = hashlib.sha256(fetched.model).hexdigest()
    if sha256 != wanted.sha256:  # before anything of the manifest is said: then it may be anybody's document
        message = f"the model's sha256 is {sha256}, asked for was {wanted.sha256}"
        raise ModelRejectedError(Rejection.DIGEST_MISMATCH, message)
    manifest = parse_manifest(fetched.manifest)
    check_manifest(manifest, expected_kind=wanted.kind, model_sha256=sha256, expected_sha256=wanted.sha256)
    return fetched


def _from_url(client: Client, source: HttpModelRef, wanted: Wanted) -> Fetched:
    manifest_url = source.manifest_url or urljoin(source.url, "manifest.json")
    if place_of(manifest_url) != place_of(source.url):
        raise FetchError("HostNotAllowed", "url and manifestUrl must be of the same scheme, host and port")
    credentials = _for_host(wanted.credentials, source.host)
    headers = {} if credentials is None else {"Authorization": basic_of(credentials)}
    manifest = client.get(manifest_url, limit=MAX_MANIFEST_BYTES, headers=headers).ok("the manifest")
    return Fetched(client.get(source.url, limit=wanted.max_bytes, headers=headers).ok("the model"), manifest)


def _for_host(credentials: Credentials | None, host: str) -> Credentials | None:
    """What was given for this host; nobody else ever sees it."""
    return credentials if credentials is not None and credentials.host.lower() == host.lower() else None


def _answer(raw: bytes) -> tuple[Told, Fetched]:
    try:
        wanted = Wanted.model_validate_json(raw)
        signal.signal(signal.SIGALRM, _too_late)
        signal.setitimer(signal.ITIMER_REAL, wanted.seconds)
        fetched = fetch_here(wanted)
    except ValidationError as error:
        return _refusal("FetchFailed", f"the question: {error.errors(include_input=False)[0]['msg']}")
    except (FetchError, ModelRejectedError, InvalidConfigError) as error:
        return _refusal(error.reason, str(error))
    except MemoryError:
        return _refusal("ModelTooLarge", "more memory would be needed than fetching may use")
    return Told(model_bytes=len(fetched.model), manifest_bytes=len(fetched.manifest)), fetched


def _refusal(reason: str, message: str) -> tuple[Told, Fetched]:
    return Told(reason=reason, message=message[:1024]), Fetched(b"", b"")


def _too_late(*_: object) -> None:
    raise FetchError("FetchTimeout", "the server is too slow: the time for fetching is over")


def main() -> int:
    """Always 0 where there is an answer, also a refusal."""
    limit_itself()
    told, fetched = _answer(sys.stdin.buffer.read(MAX_QUESTION_BYTES))
    signal.setitimer(signal.ITIMER_REAL, 0)
    out = sys.stdout.buffer
    out.write(told.model_dump_json(by_alias=True).encode() + b"\n" + fetched.model + fetched.manifest)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
