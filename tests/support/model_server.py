"""A server of models that can be slow, lie and redirect, and a small OCI registry, over real sockets."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import ssl
import tarfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
RAW_LAYER = "application/vnd.oci.image.layer.v1.tar"
USER, PASSWORD, TOKEN = "me", "pass:word", "a-token"


@dataclass
class ModelServer:
    """What the server answers by path; everything else is 404. ``asked`` counts paths."""

    scheme: str
    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    acts: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    headers: dict[str, str] = field(default_factory=dict)
    """Of the last request."""
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end: whoever is slow stops."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"{self.scheme}://{self.host}{path}"

    def serve_model(self, folder: str, model: bytes, manifest: bytes) -> str:
        """Puts both files below a folder; returns the model's URL."""
        self.files[f"{folder}/model.onnx"] = model
        self.files[f"{folder}/manifest.json"] = manifest
        return self.url(f"{folder}/model.onnx")

    def act(self, path: str, what: Callable[[BaseHTTPRequestHandler], None], manifest: bytes = b"{}") -> str:
        """A path that does something particular, with a manifest beside it; returns its URL."""
        self.acts[path] = what
        self.files[path.rpartition("/")[0] + "/manifest.json"] = manifest
        return self.url(path)


@contextlib.contextmanager
def model_server(certificate: Path | None = None) -> Iterator[ModelServer]:
    """Serves on a free port of 127.0.0.1; with the certificate of a folder, over TLS."""
    server = ModelServer("http" if certificate is None else "https", 0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            server.asked[path] += 1
            server.headers = dict(self.headers.items())
            act = server.acts.get(path)
            if act is not None:
                with contextlib.suppress(OSError):  # whoever asked has gone, as it should
                    act(self)
                self.close_connection = True
            elif path in server.files:
                reply(self, 200, server.files[path])
            else:
                reply(self, 404, b"")

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server.port = listening.server_address[1]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        listening.shutdown()
        listening.server_close()
        thread.join()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def redirecting(target: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, 302, b"", Location=target)


def announcing(announced: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Announces another length than it sends."""
    return lambda handler: reply(handler, 200, body, Content_Length=str(announced))


def endless(server: ModelServer) -> Callable[[BaseHTTPRequestHandler], None]:
    """Zeros for ever, in chunks, without a length."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        block = b"%x\r\n%s\r\n" % (2**16, bytes(2**16))
        while not server.released.is_set():
            handler.wfile.write(block)

    return act


def trickling(server: ModelServer) -> Callable[[BaseHTTPRequestHandler], None]:
    """A byte now and then: never silent for long, never done."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not server.released.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return act


def asking_for(authorization: str, body: bytes, challenge: str = "Basic") -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers those alone who bring the header."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization") == authorization:
            reply(handler, 200, body)
        else:
            reply(handler, 401, b"", WWW_Authenticate=challenge)

    return act


def basic(user: str = USER, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def archive(files: dict[str, bytes], *, compressed: bool = True) -> bytes:
    """An image's layer with these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0) if compressed else out.getvalue()


def push(
    server: ModelServer, repository: str, tag: str, layers: list[tuple[bytes, str, str | None]], *, index: bool = False
) -> str:
    """Puts an artefact or image into the registry; returns the digest of what the tag names.

    ``layers`` are content, media type and title.
    """
    base = f"/v2/{repository}"
    described: list[dict[str, Any]] = []
    for content, media, title in layers:
        layer: dict[str, Any] = {"mediaType": media, "digest": digest(content), "size": len(content)}
        described.append(
            layer if title is None else {**layer, "annotations": {"org.opencontainers.image.title": title}}
        )
        server.files[f"{base}/blobs/{digest(content)}"] = content
    document = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": described}).encode()
    server.files[f"{base}/manifests/{digest(document)}"] = document
    if index:
        entry = {"mediaType": OCI_MANIFEST, "digest": digest(document), "size": len(document)}
        document = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
        server.files[f"{base}/manifests/{digest(document)}"] = document
    server.files[f"{base}/manifests/{tag}"] = document
    return digest(document)


def guard(server: ModelServer, repository: str) -> None:
    """From now on the repository answers whoever brings the token, which is given to whoever has the password."""
    token = f"/token/{repository}"
    challenge = f'Bearer realm="{server.url(token)}",service="test",scope="repository:{repository}:pull"'
    for path in [path for path in server.files if path.startswith(f"/v2/{repository}/")]:
        server.acts[path] = asking_for(f"Bearer {TOKEN}", server.files.pop(path), challenge)
    server.acts[token] = asking_for(basic(), json.dumps({"token": TOKEN}).encode())
