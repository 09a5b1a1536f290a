from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmrouter.errors import InvalidInputError
from llmrouter.study.cells import CellSpec
from llmrouter.study.store import Store
from llmrouter.study.task import Task, TaskKind

if TYPE_CHECKING:
    from pathlib import Path


def test_results_outlive_the_process(tmp_path: Path) -> None:
    with Store(tmp_path, fresh=False) as store:
        store.put("k1", {"cell": "c"}, {"a": [0.1, None, 1e-17]})
    with Store(tmp_path, fresh=False) as store:
        assert "k1" in store
        assert "k2" not in store
        assert store.get("k1") == {"a": [0.1, None, 1e-17]}


def test_half_a_line_of_a_stopped_process_is_cut_off(tmp_path: Path) -> None:
    with Store(tmp_path, fresh=False) as store:
        store.put("k1", {}, 1)
        path = store.path
    with path.open("ab") as file:
        file.write(b'{"key": "k2", "resu')
    with Store(tmp_path, fresh=False) as store:
        assert len(store) == 1
        store.put("k3", {}, 3)
    with Store(tmp_path, fresh=False) as store:
        assert [key in store for key in ("k1", "k2", "k3")] == [True, False, True]


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"key": "k1", "result": 1}\nnonsense\n')
    with pytest.raises(InvalidInputError, match=r"results\.jsonl: line 2"):
        Store(tmp_path, fresh=False)
    with Store(tmp_path, fresh=True) as store:
        assert len(store) == 0


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    with Store(tmp_path, fresh=False), pytest.raises(InvalidInputError, match="another process"):
        Store(tmp_path, fresh=False)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="file"):
        Store(tmp_path / "file", fresh=False)


def test_a_task_is_known_by_all_that_matters(tmp_path: Path) -> None:
    def task(**changed: object) -> Task:
        given = {"kind": TaskKind.RUN, "cell": CellSpec(name="h100-mix"), "policy": "Random", "seed": 1, **changed}
        return Task(**given)  # type: ignore[arg-type]

    trace = tmp_path / "t.csv"
    trace.write_text("1")
    keys = {
        task().key,
        task(seed=2).key,
        task(policy="RoundRobin").key,
        task(rate_rps=3.0).key,
        task(kind=TaskKind.TIMELINE).key,
        task(cell=CellSpec(name="h100-mix", instances=8)).key,
        task(cell=CellSpec(name="h100-mix", trace=str(trace))).key,
    }
    assert len(keys) == 7
    assert task().key == task().key
