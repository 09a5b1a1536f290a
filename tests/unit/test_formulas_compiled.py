"""What a compiled file includes of a Python file: its numbers and its functions of numbers, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

SOURCE = '''
"""A file of formulas."""

from collections.abc import Sequence

from other.numbers import SHARE, Thing

PLACE = 2
LEAST = -1.5
ALONE = (1.0, 0.0)
NAME = "no number"


def cost(x: Sequence[float], by: float, times: int = 1) -> float:
    """Its doc."""
    worth = x[PLACE] * by
    return max(worth, LEAST) * times


def is_more(a: float) -> bool:
    return a > SHARE


def of_a_thing(thing: Thing, by: float) -> float:
    return thing.cost * by


def by_name(*, by: float) -> float:
    return by


def in_words(a: float) -> str:
    return f"{a}"
'''

WRITTEN = """\
cdef double SHARE = 0.25
cdef enum:
    PLACE = 2
cdef double LEAST = -1.5
cdef double[2] ALONE = [1.0, 0.0]
cdef double cost(const double* x, double by, long times=1) noexcept:
    worth = x[PLACE] * by
    return max(worth, LEAST) * times
cdef bint is_more(double a) noexcept:
    return a > SHARE
"""


@pytest.fixture
def formulas() -> Any:  # noqa: ANN401 - a module that is no package's
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "tools" / "formulas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numbers_and_functions_of_numbers_are_written_out(formulas: Any, tmp_path: Path) -> None:  # noqa: ANN401
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "numbers.py").write_text("SHARE = 0.25\nREST = 0.75\n\n\nclass Thing: ...\n")
    (tmp_path / "costs.py").write_text(SOURCE)
    assert formulas.written(tmp_path, "costs.py") == WRITTEN


def test_what_a_file_includes_is_what_it_is_compiled_of(formulas: Any) -> None:  # noqa: ANN401
    names = formulas.included_by(ROOT / "llmrouter" / "routing" / "table.pyx")
    assert names == ["llmrouter/routing/rules.py", "llmrouter/routing/inflight.py"]
    assert all((ROOT / name).is_file() for name in names)
