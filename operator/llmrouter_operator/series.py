"""Series of LLMRouters at gauges: what is shown no more is removed, and so has no value instead of an old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import Gauge

    from llmrouter_operator.models import ObjectKey

    Labels = tuple[str, ...]


class Series:
    """Of several gauges, whose first labels are an LLMRouter's namespace and name."""

    def __init__(self) -> None:
        self._shown: dict[tuple[Gauge, ObjectKey], set[Labels]] = {}

    def show(self, gauge: Gauge, key: ObjectKey, values: Mapping[Labels, float]) -> None:
        """Shows the series of one LLMRouter, by their further labels, in place of those shown before."""
        for labels in self._shown.pop((gauge, key), set()) - values.keys():
            gauge.remove(*key, *labels)
        for labels, value in values.items():
            gauge.labels(*key, *labels).set(value)
        if values:
            self._shown[gauge, key] = set(values)
