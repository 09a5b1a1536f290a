"""Models of one's own: the bytes that a configuration means, from beside it or from the mounted volume."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
from typing import TYPE_CHECKING, NamedTuple

from llmrouter.errors import ModelRejectedError
from llmrouter.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, ModelKind, Rejection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmrouter.config import PolicyConfig, PredictorConfig

_log = logging.getLogger(__name__)
MODEL_FILE, MANIFEST_FILE = "model.onnx", "manifest.json"
COPIES = 3
"""Copies that are kept, those used last: of a policy, a candidate and a predictor."""


class Files(NamedTuple):
    """Bytes of a model and of its manifest."""

    model: bytes
    manifest: bytes


class OwnModels:
    """Finds them, and has each tried out before it is opened here. Its methods may take seconds: call them in a thread.

    Args:
        folder: where the volume of models is mounted; ``None`` where there is none.
        kept: a folder of this router's own for copies of what was read there, by digest: a file that is overwritten
            changes nothing for as long as the folder lasts. ``None`` keeps none.
        probe: tries a model out where it can do no harm, or raises ModelRejectedError; ``None`` does not.
    """

    def __init__(
        self,
        folder: Path | None = None,
        kept: Path | None = None,
        probe: Callable[[ModelKind, Files], None] | None = None,
    ) -> None:
        self._folder = folder
        self._kept = kept
        self._probe = probe
        self._probed: set[tuple[ModelKind, str]] = set()
        self._missing: set[tuple[str, str]] = set()

    def policy(self, config: PolicyConfig, carried: Files | None) -> Files:
        """The model of a policy, ``carried`` with the configuration unless it is on the volume.

        Raises:
            ModelRejectedError: it is not there, not the one that is meant, or must not run.
        """
        return self._tried(ModelKind.POLICY, config, carried, "the configuration carries no model of its policy")

    def predictor(self, config: PredictorConfig, carried: Files | None) -> Files:
        """The same of an output-length model."""
        message = "the configuration carries no model and manifest of its predictor"
        return self._tried(ModelKind.OUTPUT_LENGTH, config, carried, message)

    def begin(self) -> None:
        """A new configuration is about to be made runnable: what the last one missed is of no interest."""
        self._missing.clear()

    def has_come(self) -> bool:
        """Whether anything that was missed on the volume is there now."""
        return any(self._is_there(path, sha256) for path, sha256 in tuple(self._missing))

    def _tried(
        self, kind: ModelKind, config: PolicyConfig | PredictorConfig, carried: Files | None, missing: str
    ) -> Files:
        if config.model_path is not None:
            files = self._from_volume(config.model_path, config.model_sha256 or "")
        elif carried is not None:
            files = carried
        else:
            raise ModelRejectedError("ModelNotFound", missing)
        digest = hashlib.sha256(files.model + files.manifest).hexdigest()
        if self._probe is not None and (kind, digest) not in self._probed:
            self._probe(kind, files)
            self._probed.add((kind, digest))
        return files

    def _from_volume(self, path: str, sha256: str) -> Files:
        copy = None if self._kept is None else self._kept / sha256
        try:
            files = self._read(path, sha256)
        except ModelRejectedError as error:
            self._missing.add((path, sha256))
            if copy is None or not (copy / MODEL_FILE).is_file():
                raise
            _log.warning("the volume has the model no more: its copy is used", extra={"reason": error.reason,
                                                                                   "detail": str(error)})  # fmt: skip
            return Files((copy / MODEL_FILE).read_bytes(), (copy / MANIFEST_FILE).read_bytes())
        if copy is not None:
            _keep(copy, files)
        return files

    def _read(self, path: str, sha256: str) -> Files:
        if self._folder is None:
            raise ModelRejectedError("ModelNotFound", "no volume of models is mounted: set router.models")
        folder = self._folder / path
        files = Files(
            _read(self._folder, folder / MODEL_FILE, MAX_MODEL_BYTES),
            _read(self._folder, folder / MANIFEST_FILE, MAX_MANIFEST_BYTES),
        )
        found = hashlib.sha256(files.model).hexdigest()
        if found != sha256:
            message = f"{path}/{MODEL_FILE}: the model's sha256 is {found}, asked for was {sha256}"
            raise ModelRejectedError(Rejection.DIGEST_MISMATCH, message)
        return files

    def _is_there(self, path: str, sha256: str) -> bool:
        try:
            self._read(path, sha256)
        except ModelRejectedError:
            return False  # not yet: it was said when it was missed
        return True


def _read(root: Path, file: Path, most: int) -> bytes:
    """A regular file below ``root`` of at most so many bytes; raises ModelRejectedError."""
    where = file.relative_to(root)
    try:
        real = file.resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            raise ModelRejectedError("ModelNotFound", f"{where} leads out of the volume")
        # A pipe would be waited for; a file that grows while it is read is cut off.
        with os.fdopen(os.open(real, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise ModelRejectedError("ModelNotFound", f"{where} is no file")
            content = opened.read(most + 1)
    except OSError as error:
        raise ModelRejectedError("ModelNotFound", f"{where}: {error.strerror}") from error
    if len(content) > most:
        raise ModelRejectedError("ModelTooLarge", f"{where}: more than {most} bytes")
    return content


def _keep(copy: Path, files: Files) -> None:
    """Writes a copy; one that cannot be written is missed only when the volume changes, and then says so."""
    try:
        copy.mkdir(parents=True, exist_ok=True)
        for name, content in ((MANIFEST_FILE, files.manifest), (MODEL_FILE, files.model)):
            if not (copy / name).is_file():
                written = copy / f".{name}.{os.getpid()}"
                written.write_bytes(content)
                written.replace(copy / name)
        os.utime(copy)
        by_use = sorted((one for one in copy.parent.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime_ns)
        for old in by_use[:-COPIES]:
            shutil.rmtree(old, ignore_errors=True)  # another process of the pod may be faster
    except OSError as error:
        _log.warning("no copy of the model can be kept", extra={"error": str(error)})
