"""Counts pods by a watch: at every moment, those that are starting, serving or terminating."""

from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from llmrouter.testbed.demo_target import DemoTarget

_ENDED = frozenset({"Succeeded", "Failed"})


class PodCount:
    """Pods that are there, by what a watch said: each with the value of a label."""

    def __init__(self) -> None:
        self._pods: dict[str, str] = {}
        self.most = 0
        """The most that there were at a time."""

    @property
    def count(self) -> int:
        """Pods that are there now."""
        return len(self._pods)

    def of(self, value: str) -> int:
        """Those whose label has this value."""
        return sum(one == value for one in list(self._pods.values()))

    def feed(self, line: str) -> None:
        """Takes one event: its kind, and the pod's name, label and phase."""
        kind, name, value, *phase = line.split()
        if kind == "DELETED" or (phase and phase[0] in _ENDED):
            self._pods.pop(name, None)
        else:
            self._pods[name] = value
        self.most = max(self.most, len(self._pods))


class PodWatch(PodCount):
    """Follows pods that carry a label; use as a context manager."""

    def __init__(self, target: DemoTarget, label: str) -> None:
        super().__init__()
        escaped = label.replace(".", "\\.")
        shown = ("type", "object.metadata.name", f"object.metadata.labels.{escaped}", "object.status.phase")
        path = " ".join(f"{{.{one}}}" for one in shown) + '{"\\n"}'
        words = ("get", "pods", "--selector", label, "--watch", "--output-watch-events", "--output", f"jsonpath={path}")
        self._words = target.kubectl_words(*words)

    def __enter__(self) -> Self:
        """Begins to watch."""
        self._child = subprocess.Popen(self._words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the watch."""
        self._child.kill()
        self._child.communicate()
        self._thread.join()

    def _read(self) -> None:
        for line in self._child.stdout or ():
            self.feed(line)
