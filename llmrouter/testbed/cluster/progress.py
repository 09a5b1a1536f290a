"""Live progress: one line when a part starts, one when it is done, one every half minute between."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HEARTBEAT_S = 30.0


def spoken(seconds: float) -> str:
    """A duration in words: `0.4 s`, `12 s`, `4 min 8 s`."""
    if seconds < 10:  # noqa: PLR2004 - below ten seconds a tenth is worth showing
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


class Progress:
    """Tells a person which part is being worked on, for how long, and how long it usually takes."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._say = say
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._started_at_s = clock()

    def note(self, text: str) -> None:
        """Says one line with the time since the beginning before it."""
        self._say(f"[{self._clock() - self._started_at_s:6.1f} s] {text}")

    @contextmanager
    def part(self, name: str, *, usually_s: float | None = None) -> Iterator[None]:
        """Frames one part of the work; on an exception it says so and lets the exception through."""
        hint = f" (usually {spoken(usually_s)})" if usually_s else ""
        self.note(f"… {name}{hint}")
        began_at_s = self._clock()
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._heartbeat_s):
                self.note(f"  still: {name}, {spoken(self._clock() - began_at_s)} so far{hint}")

        threading.Thread(target=beat, daemon=True, name=f"progress of {name}").start()
        try:
            yield
        except BaseException:
            self.note(f"✗ {name} failed after {spoken(self._clock() - began_at_s)}")
            raise
        finally:
            done.set()
        self.note(f"✓ {name}: {spoken(self._clock() - began_at_s)}")


def silent() -> Progress:
    """Progress that nobody listens to, for tests and fixtures."""
    return Progress(lambda _line: None)
