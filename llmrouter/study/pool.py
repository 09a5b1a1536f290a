"""Does many tasks on several cores, keeps every result as soon as it is there, and skips those it has."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

from llmrouter.study.perform import perform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from llmrouter.study.store import Store
    from llmrouter.study.task import Task


def do_tasks(tasks: Sequence[Task], store: Store, *, jobs: int, on_done: Callable[[Task], None]) -> None:
    """Brings the result of every task into the store; ``on_done`` is told of each one, found or made.

    Raises:
        InvalidInputError: from a task; results that came before it are kept.
    """
    missing = []
    for task in tasks:
        if task.key in store:
            on_done(task)
        else:
            missing.append(task)
    for task, result in _results(missing, jobs):
        store.put(task.key, about(task), result)
        on_done(task)


def about(task: Task) -> dict[str, object]:
    """What a reader of the results' file should know of a task."""
    return {
        "kind": task.kind.value,
        "cell": task.cell.name,
        "policy": task.policy,
        "seed": task.seed,
        "rate_rps": task.rate_rps,
    }


def _results(tasks: Sequence[Task], jobs: int) -> Iterable[tuple[Task, dict[str, Any]]]:
    if jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, perform(task)
        return
    # A fresh interpreter each: threads of the parent, of a progress bar for one, do not survive a fork.
    workers = ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent
    )
    try:
        futures = {workers.submit(perform, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        workers.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    """A stopped comparison ends its runs under way; the parent keeps their results or drops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
