"""Programs that run in the background: started with a log, found again by pid file, ended with their children."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError

POLL_S = 0.05


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def poll(condition: Callable[[], bool], *, within_s: float, what: str, every_s: float = POLL_S) -> None:
    """Returns once `condition` holds; raises `PartFailedError` naming `what` after `within_s` seconds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise PartFailedError(f"{what}: not within {within_s:.0f} s")
        time.sleep(every_s)


def run(
    argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, within_s: float = 600, **files: Path
) -> str:
    """Runs a command to its end and returns what it printed; a failure carries the end of that. `cwd=` as usual."""
    words = [str(word) for word in argv]
    label = f"{' '.join(words[:4])} …"
    path = None if env is None else env.get("PATH")
    if shutil.which(words[0], path=path) is None:
        raise ClusterError(f"{words[0]} is not installed")
    # In a group of its own, to be ended whole; killed by the kernel too, should this process end without a word.
    command = subprocess.Popen(
        [*_dying_with_caller(), *words],
        env=None if env is None else dict(env),
        cwd=files.get("cwd"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _RUNNING.add(command)
    try:
        printed, complained = command.communicate(timeout=within_s)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{label} took longer than {within_s:.0f} s") from error
    finally:
        _end(command)
    if command.returncode:
        tail = "\n".join((printed + complained).strip().splitlines()[-15:])
        raise ClusterError(f"{label} failed with status {command.returncode}:\n{tail}")
    return printed


# The commands under way in any thread, so that an interrupted run can end those of its other threads.
_RUNNING: set["subprocess.Popen[str]"] = set()


def end_commands() -> None:
    """Kills every command that `run` is waiting for, in whichever thread."""
    for command in tuple(_RUNNING):
        _kill_group(command)


def _end(command: "subprocess.Popen[str]") -> None:
    _RUNNING.discard(command)
    if command.poll() is None:
        _kill_group(command)
        command.wait()
    for pipe in (command.stdout, command.stderr):
        if pipe is not None:
            pipe.close()


def _kill_group(command: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself
        os.killpg(command.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Process:
    """A background program that this run, or an earlier one, started."""

    name: str
    pid: int
    log: Path
    child: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        if self.child is not None:
            return self.child.poll() is None
        return Path(f"/proc/{self.pid}").exists() and _state(self.pid) != "Z"

    def stop(self, *, grace_s: float = 5.0, first: signal.Signals = signal.SIGTERM) -> None:
        """Ends the program and its process group: asks, waits `grace_s`, then kills. Returns when it is gone."""
        if self.alive:
            self._signal(first)
            with contextlib.suppress(PartFailedError):  # what did not go when asked is killed on the next line
                poll(lambda: not self.alive, within_s=grace_s, what=self.name)
        self._signal(signal.SIGKILL)
        poll(lambda: not self.alive, within_s=10, what=f"{self.name} killed")

    def ready(self, condition: Callable[[], bool], *, within_s: float) -> None:
        """Waits for `condition`; fails at once if the program ends, with the last lines of its log."""

        def settled() -> bool:
            if not self.alive:
                raise PartFailedError(f"{self.name} ended before it was ready.\n{tail_of(self.log)}")
            return condition()

        try:
            poll(settled, within_s=within_s, what=f"{self.name} ready")
        except PartFailedError as error:
            if str(error).endswith(f"{within_s:.0f} s"):
                raise PartFailedError(f"{error}; its log {self.log} ends:\n{tail_of(self.log)}") from error
            raise

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # gone already, which is what a signal here is for
            os.killpg(self.pid, number)


def start(
    name: str,
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    tied: bool = True,
    pid_file: Path | None = None,
) -> Process:
    """Starts a program in a process group of its own, its output going to `log`.

    A `tied` program is killed by the kernel when the thread that called this ends, however that comes about. One that
    is not tied lives on and is found again by its `pid_file`.
    """
    words = [str(word) for word in argv]
    if tied:
        words = [*_dying_with_caller(), *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    if tied:
        # Until setpriv has become the program, the kernel does not know yet that the two are to die together.
        poll(lambda: not _is_setpriv(child.pid), within_s=10, what=f"{name} started", every_s=0.001)
    if pid_file is not None:
        pid_file.write_text(f"{child.pid} {_started_ticks(child.pid)} {log}\n")
    return Process(name, child.pid, log, child)


def recorded(pid_file: Path) -> Process | None:
    """The program that `pid_file` speaks of, or None if it has ended or its number went to another program."""
    try:
        pid, ticks, log = pid_file.read_text().split(maxsplit=2)
        if _started_ticks(int(pid)) != int(ticks):
            return None
    except (OSError, ValueError):  # no such file or process, or a file cut short: nothing there to stop
        return None
    return Process(pid_file.stem, int(pid), Path(log.strip()))


def tail_of(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for a message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def _dying_with_caller() -> list[str]:
    """The prefix by which the kernel kills a program when the thread that started it ends."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ClusterError("setpriv (of util-linux) is not installed")
    return [setpriv, "--pdeathsig", "KILL", "--"]


def _is_setpriv(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name == "setpriv"
    except OSError:  # it ended already, which the caller will see
        return False


def _started_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid it names one process for ever."""
    return int(_stat(pid)[19])


def _state(pid: int) -> str:
    try:
        return _stat(pid)[0]
    except OSError:  # it ended between the question and the look: the same answer as a zombie
        return "Z"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the program's name, which may itself hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
