import contextlib
import threading
from pathlib import Path

from llmrouter.testbed.cluster.containers import remove_cgroups


def _churn(folder: Path, stop: threading.Event) -> None:
    """Pods' cgroups that come and go while they are looked at; both sides remove them."""
    while not stop.is_set():
        for name in "abcdefgh":
            with contextlib.suppress(OSError):
                (folder / name / "container").mkdir(parents=True)
        for name in "abcdefgh":
            for path in (folder / name / "container", folder / name):
                with contextlib.suppress(OSError):
                    path.rmdir()


def test_cgroups_that_go_while_they_are_removed_are_no_error(tmp_path: Path) -> None:
    folder, stop = tmp_path / "kubepods", threading.Event()
    thread = threading.Thread(target=_churn, args=(folder, stop))
    thread.start()
    try:
        for _ in range(300):
            remove_cgroups([folder])
    finally:
        stop.set()
        thread.join()


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    remove_cgroups([tmp_path / "never-made"])
