"""Tells apart what routers newly say and what they only repeat: each repeats itself every few seconds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from llmrouter.acknowledgement import ACKNOWLEDGEMENTS_SUFFIX
from llmrouter_operator.models import CONFIG_MAP, ObjectKey, metadata_of

if TYPE_CHECKING:
    from llmrouter_operator.models import Object

REPEATED = ("atS", "inFlight", "quietest")
"""Fields of an acknowledgement that no condition is made of."""

MOVING = ("mix", "calibration")
"""They move with every acknowledgement: their first word is news, and then a resync reads them."""

OF_A_TRIAL = ("trial", "ready", "reason", "paused")
"""What of a candidate is news: its arms move with every acknowledgement, and are read every few seconds."""


class News:
    """Remembers what was last said in each ConfigMap of acknowledgements. What it misses, a resync finds."""

    def __init__(self) -> None:
        self._last: dict[ObjectKey, str] = {}

    def in_event(self, kind: str, body: Object, *, deleted: bool) -> bool:
        """Whether an event about an owned object tells anything that a reconcile would see."""
        metadata = metadata_of(body)
        if kind != CONFIG_MAP.kind or not metadata["name"].endswith(ACKNOWLEDGEMENTS_SUFFIX):
            return True
        key = ObjectKey(metadata["namespace"], metadata["name"])
        if deleted:
            self._last.pop(key, None)
            return True
        essence = essence_of(body)
        if self._last.get(key) == essence:
            return False
        self._last[key] = essence
        return True


def essence_of(config_map: Object) -> str:
    """What of a ConfigMap of acknowledgements matters, as text: its data without what is only repeated."""
    metadata = metadata_of(config_map)
    said = {name: _essential(text) for name, text in (config_map.get("data") or {}).items()}
    kept = [metadata.get(part) for part in ("uid", "labels", "annotations", "ownerReferences")]
    return json.dumps([kept, said], sort_keys=True)


def _essential(text: str) -> object:
    try:
        said = json.loads(text)
    except ValueError:
        return text  # malformed: the reconcile counts it
    if not isinstance(said, dict):
        return text
    kept = {name: value for name, value in said.items() if name not in {*REPEATED, *MOVING}}
    if isinstance(trial := kept.get("candidate"), dict):
        kept["candidate"] = {name: trial.get(name) for name in OF_A_TRIAL}
    return kept | {name: bool(said.get(name)) for name in MOVING}
