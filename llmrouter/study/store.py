"""Results on disk, one JSON object a line: what is there need not be run again."""

from __future__ import annotations

import fcntl
import json
from typing import TYPE_CHECKING, Any, Self

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

FILE_NAME = "results.jsonl"


class Store:
    """The results of a folder by the key of their task. Open it as a context: one process at a time writes there."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        """``fresh`` forgets what is there.

        Raises:
            InvalidInputError: the folder cannot be used, another process uses it, or a line is no result.
        """
        self.path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise InvalidInputError(f"{self.path}: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InvalidInputError(f"{self.path}: another process is writing to it") from error
        self._results: dict[str, Any] = {}
        try:
            if fresh:
                self._file.truncate(0)
            self._read()
        except InvalidInputError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: str) -> Any:  # noqa: ANN401 - what JSON holds
        """The result of a task; raises KeyError if there is none."""
        return self._results[key]

    def put(self, key: str, about: Mapping[str, object], result: object) -> None:
        """Keeps a result; ``about`` says to a reader of the file what it is of. A stopped process does not lose it."""
        line = json.dumps({"key": key, **about, "result": result}, ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._results[key] = json.loads(line)["result"]

    def _read(self) -> None:
        """Reads every whole line; half a line at the end is of a process that was stopped, and is cut off."""
        self._file.seek(0)
        good = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(good)
                break
            try:
                entry = json.loads(line)
                self._results[entry["key"]] = entry["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInputError(
                    f"{self.path}: line {number} is no result ({error}); --fresh starts over"
                ) from error
            good += len(line)
