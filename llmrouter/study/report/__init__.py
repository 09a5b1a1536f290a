"""The result of ``llmrouter bench`` as one HTML page that needs nothing else: no network, no file, no server."""

from __future__ import annotations

from llmrouter.study.report.page import render

__all__ = ["render"]
