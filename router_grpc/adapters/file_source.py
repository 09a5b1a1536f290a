"""A configuration from one file of the same resources: one LLMRouter and its RoutingPolicy, as YAML documents."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmrouter.config import canonical_json, compile_policy, compile_router
from llmrouter.config_file import parse, read_text
from llmrouter.errors import InvalidConfigError
from router_grpc.runtime import ConfigBundle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from llmrouter.config import RouterConfig

POLL_S = 0.25


def compile_file(text: str) -> RouterConfig:
    """The configuration of a file's resources; raises InvalidConfigError naming the document and field."""
    declared = parse(text)
    where = f"LLMRouter {declared.name}"
    for pool in declared.router.pools:
        if pool.selector is not None:
            raise InvalidConfigError(
                f"{where}: pools[{pool.name}].selector needs Kubernetes: standalone pools have endpoints"
            )
    if declared.router.predictor.model is not None:
        raise InvalidConfigError(
            f"{where}: predictor.model.configMap needs Kubernetes: standalone has the shipped models"
        )
    model = declared.policy.model
    if model is not None and model.config_map is not None:
        raise InvalidConfigError(
            f"RoutingPolicy {declared.policy_name}: model.configMap needs Kubernetes: standalone has builtin"
        )
    section = compile_policy(declared.policy_name, declared.policy, model_sha256=model.sha256 if model else None)
    return compile_router(declared.router, name=declared.name, namespace="", generation=0, policy=section)


class FileSource:
    """Follows one file. A version that cannot be used changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> RouterConfig:
        """The file as it is now; raises InvalidConfigError."""
        return compile_file(read_text(self._path))

    async def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncIterator[ConfigBundle]:
        """Every usable version of the file, the present one first; each other one is told once to ``on_refused``."""
        seen: str | None = None
        complaint = ""
        while True:
            try:
                text = await asyncio.to_thread(read_text, self._path)
                bundle = None if text == seen else _bundle(text)
            except InvalidConfigError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    on_refused(error)
                seen = None
            else:
                if bundle is not None:
                    yield bundle
                seen, complaint = text, ""
            await asyncio.sleep(POLL_S)


def _bundle(text: str) -> ConfigBundle:
    return ConfigBundle(content=canonical_json(compile_file(text)))
