"""The same router without Kubernetes and Redis: ``llmrouter serve --config FILE``."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from llmrouter.errors import InvalidConfigError
from llmrouter.logs import configure_logging
from router_grpc.adapters.file_source import FileSource
from router_grpc.certificates import Tls, read_certificate
from router_grpc.composition import Settings, compose
from router_grpc.processes import MAX_PROCESSES, place_in
from router_grpc.run import run_until_stopped
from router_grpc.supervisor import supervise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.config import RouterConfig


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    router_id: str = "standalone",
    predictor: Path | None = None,
    tokenizers: Path | None = None,
    policy_model: Path | None = None,
    models: Path | None = None,
    decisions: Path | None = None,
    certificate: Path | None = None,
    processes: int = 1,
    command: Sequence[str] = (),
) -> int:
    """Serves the file's configuration until SIGTERM or SIGINT; raises InvalidConfigError if it cannot begin.

    ``predictor`` and ``policy_model`` are folders of models of one's own, ``models`` that of all that the file's
    ``persistentVolumeClaim`` names, ``tokenizers`` that of the models' tokenizers, ``decisions`` that of decision logs,
    the current one where it is not said, ``certificate`` one with ``tls.crt`` and ``tls.key``, read again when they
    change. Several ``processes`` run ``command`` each, which serves the same; returns an exit status.
    """
    if tokenizers is not None and not tokenizers.is_dir():
        raise InvalidConfigError(f"--tokenizers {tokenizers}: no such folder")
    if models is not None and not models.is_dir():
        raise InvalidConfigError(f"--models {models}: no such folder")
    source = FileSource(path, predictor=predictor, policy_model=policy_model, models=models)
    config = source.read()
    configure_logging(config.log_level)
    tls = _tls(config, certificate)
    place = place_in(os.environ)
    settings = Settings(
        router_id=router_id if place is None else place.named(router_id),
        ledger_namespace=config.name,
        host=host,
        grpc_port=config.listeners.grpc_port,
        metrics_port=config.listeners.metrics_port,
        ext_proc_port=config.listeners.ext_proc.port if config.listeners.ext_proc else None,
        openai_port=config.listeners.openai.port if config.listeners.openai else None,
        ext_proc_is_fast=config.listeners.ext_proc is None or config.listeners.ext_proc.transport == "Fast",
        tls=tls,
        redis_password=os.environ.get("LLMROUTER_REDIS_PASSWORD"),
        tokenizers=tokenizers,
        models=models,
        decisions=decisions or Path.cwd(),
        place=place,
    )
    if processes > 1 and place is None:
        return uvloop.run(_supervise(processes, command, config, settings))

    async def main() -> None:
        router = compose(settings, state=config.state, source=source, core=None, acknowledge=None)
        await run_until_stopped(router, metrics_host=host, metrics_port=settings.metrics_port, place=place)

    uvloop.run(main())
    return 0


async def _supervise(processes: int, command: Sequence[str], config: RouterConfig, settings: Settings) -> int:
    if processes > MAX_PROCESSES:
        raise InvalidConfigError(f"--processes: {processes} is not within 1 and {MAX_PROCESSES}")
    if config.state.redis is None:
        raise InvalidConfigError("--processes: above 1 needs state.redis, so that the processes count as one")
    return await supervise(
        command,
        processes=processes,
        environment=os.environ,
        metrics_host=settings.host,
        metrics_port=settings.metrics_port,
    )


def _tls(config: RouterConfig, certificate: Path | None) -> Tls | None:
    picker = config.listeners.ext_proc
    if picker is None or not picker.secure_serving:
        if certificate is not None:
            raise InvalidConfigError("--certificate: needs listeners.extProc with secureServing: no other port has TLS")
        return None
    if certificate is not None:
        read_certificate(certificate, now=datetime.now(UTC))
    return Tls(("localhost", config.name), certificate)
