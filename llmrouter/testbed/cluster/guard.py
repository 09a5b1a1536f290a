"""Takes the cluster down when the run that owns it ends, however it ends: killed, crashed or interrupted."""

import os
import signal
import subprocess
import sys
from types import FrameType, TracebackType
from typing import Self

from llmrouter.testbed.cluster import machine
from llmrouter.testbed.cluster.places import cache_directory, repository_root

_KEEP = b"k"


class Guard:
    """A process that waits for this one to end and then takes the cluster down, unless `keep` was called.

    It learns of the end from a pipe that the kernel closes, so that not even SIGKILL leaves a cluster behind.
    Raises `UnsuitableMachineError` where there can be no cluster to guard.
    """

    def __init__(self) -> None:
        machine.check()
        self._log = cache_directory() / "guard.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._waiting = subprocess.Popen(
                [sys.executable, "-m", "llmrouter.testbed.cluster", "guard"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(repository_root())},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def keep(self) -> None:
        """Leaves the cluster up when this process ends."""
        self._close(_KEEP)

    def release(self) -> None:
        """Lets the guard take down what is still there now, and waits until it has; says so where it could not."""
        self._close(b"")
        if self._waiting.wait(timeout=120) != 0:
            print(f"the cluster was not taken down whole: {self._log} says why, make demo-down tries again")

    def _close(self, last_words: bytes) -> None:
        pipe = self._waiting.stdin
        if pipe is not None and not pipe.closed:
            pipe.write(last_words)
            pipe.close()


def end_on_signals() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP end this process through its `finally` blocks, even where they were ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _as_exit)


def _as_exit(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def owner_has_ended_and_left_it() -> bool:
    """Waits for the owner's end, in the guard's own process; True if the cluster is to go."""
    return sys.stdin.buffer.read() != _KEEP
