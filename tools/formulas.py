"""Formulas as Cython: functions over plain numbers, as a Python file has them, for ``.pyx`` files to include.

``include "llmrouter/routing/rules.pxi"`` in a ``.pyx`` file means the numbers and the functions of numbers that
``llmrouter/routing/rules.py`` has: a formula is written once, interpreted there and compiled here. What takes or
returns anything but numbers is left out.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_KINDS = {"float": "double", "int": "long", "bool": "bint", "Sequence[float]": "const double*"}
_INCLUDE = re.compile(r'^include "(\S+)\.pxi"$', re.MULTILINE)


def included_by(source: Path) -> list[str]:
    """The Python files whose formulas a ``.pyx`` file includes, relative to the root."""
    return [f"{name}.py" for name in _INCLUDE.findall(source.read_text(encoding="utf-8"))]


def written(root: Path, name: str) -> str:
    """The numbers and functions of a Python file as Cython."""
    tree = ast.parse((root / name).read_text(encoding="utf-8"))
    parts = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            parts += _imported(root, node)
        elif isinstance(node, ast.Assign):
            parts += _constant(node)
        elif isinstance(node, ast.FunctionDef):
            parts += _function(node)
    return "\n".join(parts) + "\n"


def _imported(root: Path, node: ast.ImportFrom) -> list[str]:
    """The numbers that a file has from another one of the tree."""
    source = root / (str(node.module).replace(".", "/") + ".py")
    wanted = {one.name for one in node.names if one.name.isupper()}
    if not wanted or not source.is_file():
        return []
    body = ast.parse(source.read_text(encoding="utf-8")).body
    return [line for one in body if isinstance(one, ast.Assign) and _name(one) in wanted for line in _constant(one)]


def _name(node: ast.Assign) -> str:
    return node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""


def _constant(node: ast.Assign) -> list[str]:
    """A number, or a tuple of floats."""
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        return []
    if isinstance(value, tuple) and all(isinstance(one, float) for one in value):
        return [f"cdef double[{len(value)}] {_name(node)} = {list(value)!r}"]
    if isinstance(value, int):
        return [f"cdef enum:\n    {_name(node)} = {value!r}"]
    return [f"cdef double {_name(node)} = {value!r}"] if isinstance(value, float) else []


def _function(node: ast.FunctionDef) -> list[str]:
    kinds = [_KINDS.get(ast.unparse(one.annotation)) if one.annotation else None for one in node.args.args]
    returned = _KINDS.get(ast.unparse(node.returns)) if node.returns else None
    if returned is None or None in kinds or node.args.kwonlyargs:
        return []
    names = [f"{kind} {one.arg}" for kind, one in zip(kinds, node.args.args, strict=True)]
    first = len(names) - len(node.args.defaults)
    taken = [*names[:first], *(f"{a}={ast.unparse(b)}" for a, b in zip(names[first:], node.args.defaults, strict=True))]
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines = "\n".join(ast.unparse(one) for one in body).splitlines()
    return [f"cdef {returned} {node.name}({', '.join(taken)}) noexcept:", *(f"    {line}" for line in lines)]
