import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmrouter.testbed.cluster.containers import remove_strays
from llmrouter.testbed.cluster.errors import ClusterError, PartFailedError
from llmrouter.testbed.cluster.node import Layout
from llmrouter.testbed.cluster.processes import free_port, poll, recorded, run, start, tail_of
from llmrouter.testbed.cluster.progress import Progress, spoken


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_program_ends_with_its_children(tmp_path: Path) -> None:
    process = start("shell", ["sh", "-c", "sleep 600 & echo $!; wait"], log=tmp_path / "log")
    poll(lambda: bool((tmp_path / "log").read_text()), within_s=10, what="child started")
    child = int((tmp_path / "log").read_text())

    process.stop(grace_s=0)

    assert not process.alive
    poll(lambda: gone(child), within_s=10, what="child gone")


def test_a_tied_program_dies_with_a_killed_caller(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\nfrom llmrouter.testbed.cluster.processes import start\n"
        f"print(start('sleep', ['sleep', '600'], log=Path({str(tmp_path / 'log')!r})).pid, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.kill()

    poll(lambda: gone(pid), within_s=10, what="tied program gone")


def test_a_program_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    process = start("broken", ["sh", "-c", "echo port taken; exit 3"], log=tmp_path / "log")

    with pytest.raises(PartFailedError, match=r"broken ended before it was ready.\n(?s:.*)port taken"):
        process.ready(lambda: False, within_s=10)


def test_a_pid_file_finds_its_program_and_no_other(tmp_path: Path) -> None:
    pid_file = tmp_path / "sleep.pid"
    process = start("sleep", ["sleep", "600"], log=tmp_path / "log", pid_file=pid_file)
    found = recorded(pid_file)
    assert found is not None
    assert (found.name, found.pid) == ("sleep", process.pid)

    process.stop()

    assert recorded(pid_file) is None
    pid_file.write_text(f"{os.getpid()} 1 {tmp_path / 'log'}\n")
    assert recorded(pid_file) is None
    pid_file.write_text("")
    assert recorded(pid_file) is None
    assert recorded(tmp_path / "never.pid") is None


def test_a_command_that_fails_says_what_it_printed() -> None:
    assert run(["echo", "words"]) == "words\n"
    with pytest.raises(ClusterError, match=r"failed with status 4:\nno space"):
        run(["sh", "-c", "echo no space >&2; exit 4"])
    with pytest.raises(ClusterError, match="no-such-command is not installed"):
        run(["no-such-command"])
    with pytest.raises(ClusterError, match="took longer than 0 s"):
        run(["sleep", "600"], within_s=0.05)


def test_polling_ends() -> None:
    with pytest.raises(PartFailedError, match="it: not within 0 s"):
        poll(lambda: False, within_s=0.0, what="it")


def test_a_stubborn_program_is_killed(tmp_path: Path) -> None:
    process = start("stubborn", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], log=tmp_path / "log")
    poll(lambda: "up" in tail_of(tmp_path / "log"), within_s=10, what="trap set")

    process.stop(grace_s=0.1, first=signal.SIGTERM)

    assert not process.alive


def test_strays_of_our_state_directory_are_found_and_no_others(tmp_path: Path) -> None:
    kubelet = tmp_path / "kubelet"
    kubelet.symlink_to(shutil.which("sh") or "/bin/sh")
    started = {
        state: start(
            "kubelet", [kubelet, "-c", "sleep 600; :", tmp_path / state / "kubelet.json"], log=tmp_path / "log"
        )
        for state in ("ours", "ours-too")
    }
    try:
        remove_strays(Layout(state=tmp_path / "ours", images=tmp_path), ["kubelet"])

        poll(lambda: not started["ours"].alive, within_s=10, what="ours gone")
        assert started["ours-too"].alive
    finally:
        for process in started.values():
            process.stop(grace_s=0)


def test_free_ports_are_ports() -> None:
    assert 0 < free_port() < 65536


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.44, "0.4 s"), (12.4, "12 s"), (60.0, "1 min"), (248.0, "4 min 8 s"), (59.7, "1 min")]
)
def test_durations_are_spoken(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


def test_progress_names_the_part_its_time_and_its_failure() -> None:
    now_s = [100.0]
    lines: list[str] = []
    progress = Progress(lines.append, clock=lambda: now_s[0])

    with progress.part("build", usually_s=90):
        now_s[0] += 12
    with pytest.raises(ValueError, match="boom"), progress.part("load"):
        raise ValueError("boom")

    assert lines == [
        "[   0.0 s] … build (usually 1 min 30 s)",
        "[  12.0 s] ✓ build: 12 s",
        "[  12.0 s] … load",
        "[  12.0 s] ✗ load failed after 0.0 s",
    ]
