"""A real redis-server: from PATH, or from Debian's package unpacked without root."""

import os
import shutil
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from llmrouter.testbed.cluster.debian import provide_root
from llmrouter.testbed.cluster.processes import Process, free_port, start


def provide_redis() -> Path:
    """The path of a redis-server program."""
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    root = provide_root("redis", ("redis-server", "redis-tools"), alone=True)
    return root / "usr" / "bin" / "redis-server"


def library_path(binary: Path) -> str:
    """Where an unpacked program finds the libraries unpacked with it."""
    return ":".join(str(path) for path in sorted(binary.parents[2].glob("usr/lib/*-linux-gnu*")))


class RedisServer:
    """One Redis on a loopback port. It keeps nothing on disk: after `stop` and `start` it is empty."""

    def __init__(self, binary: Path, directory: Path, *, port: int | None = None) -> None:
        self._binary = binary
        self._directory = directory
        self._process: Process | None = None
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the server, on the same port as before, and returns when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        flags = {"bind": "127.0.0.1", "port": self.port, "dir": self._directory, "save": "", "appendonly": "no"}
        self._process = start(
            "redis-server",
            [self._binary, *(str(word) for name, value in flags.items() for word in (f"--{name}", value))],
            log=self._directory / "redis-server.log",
            env={**os.environ, "LD_LIBRARY_PATH": library_path(self._binary)},
        )
        self._process.ready(self._answers, within_s=20)

    def stop(self) -> None:
        """Takes the server away at once; callers see refused connections."""
        if self._process is not None:
            self.resume()
            self._process.stop(grace_s=0)
            self._process = None

    def pause(self) -> None:
        """Lets the server hang: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.alive:
            os.kill(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:  # not listening yet: asked again until the time is up
            return False
