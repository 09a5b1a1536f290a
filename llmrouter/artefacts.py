"""Finds the models that the product ships: in an installed package, or in a source tree."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidConfigError
from llmrouter.manifest import ModelKind

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


def builtin_model(kind: ModelKind | str, name: str) -> tuple[bytes, bytes]:
    """Bytes of ``model.onnx`` and ``manifest.json`` of a shipped model.

    Raises:
        InvalidConfigError: (``ModelNotFound``) there is no such model; the message lists those there are.
    """
    folder = _root() / ModelKind(kind).value
    model, manifest = folder / name / "model.onnx", folder / name / "manifest.json"
    if _NAME.match(name) is None or not model.is_file() or not manifest.is_file():
        known = ", ".join(builtin_names(kind)) or "none"
        raise InvalidConfigError(
            f"no {ModelKind(kind).value} model {name!r} is shipped; there is: {known}", reason="ModelNotFound"
        )
    return model.read_bytes(), manifest.read_bytes()


def builtin_names(kind: ModelKind | str) -> list[str]:
    """Names of the shipped models of a kind."""
    folder = _root() / ModelKind(kind).value
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if (entry / "model.onnx").is_file())


def _root() -> Traversable:
    installed = files("llmrouter") / "_models"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "models"
