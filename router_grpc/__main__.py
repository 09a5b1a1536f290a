"""A router pod: reads its environment, waits for its configuration, serves until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from kubernetes.aio import client

from llmrouter.config import CERTIFICATE_FOLDER, MODELS_FOLDER, TOKENIZERS_FOLDER
from llmrouter.decision_log_spec import DECISIONS_FOLDER
from llmrouter.errors import InvalidConfigError
from llmrouter.logs import configure_logging
from router_grpc.adapters.kube import AcknowledgementWriter, ConfigMapSource, connect
from router_grpc.certificates import Tls
from router_grpc.composition import Settings, compose
from router_grpc.processes import place_in, processes_in
from router_grpc.run import run_until_stopped
from router_grpc.runtime import read_config
from router_grpc.supervisor import supervise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.config import RouterConfig

_log = logging.getLogger(__name__)

REQUIRED = ("POD_NAME", "LLMROUTER_NAMESPACE", "LLMROUTER_CONFIG_MAP", "LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP")


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Settings of a pod; raises InvalidConfigError naming the variable that is missing or no number."""
    for name in REQUIRED:
        if not environment.get(name):
            raise InvalidConfigError(f"{name}: must be set in the environment")
    ports = [_port(environment, kind, default) for kind, default in PORTS]
    place = place_in(environment)
    return Settings(
        router_id=environment["POD_NAME"] if place is None else place.named(environment["POD_NAME"]),
        namespace=environment["LLMROUTER_NAMESPACE"],
        ledger_namespace=environment.get("LLMROUTER_LEDGER_NAMESPACE")
        or f"{environment['LLMROUTER_NAMESPACE']}/{environment['LLMROUTER_CONFIG_MAP']}",
        grpc_port=ports[0],
        metrics_port=ports[1],
        ext_proc_port=_port(environment, *EXT_PROC) if environment.get("LLMROUTER_EXT_PROC_PORT") else None,
        openai_port=_port(environment, *OPENAI) if environment.get("LLMROUTER_OPENAI_PORT") else None,
        ext_proc_is_fast=_is_fast(environment),
        tls=_tls(environment),
        redis_password=environment.get("LLMROUTER_REDIS_PASSWORD") or None,
        tokenizers=Path(TOKENIZERS_FOLDER),
        models=Path(MODELS_FOLDER),
        kept_models=Path(tempfile.gettempdir()) / "models",
        decisions=Path(DECISIONS_FOLDER),
        place=place,
    )


def _is_fast(environment: Mapping[str, str]) -> bool:
    transport = environment.get("LLMROUTER_EXT_PROC_TRANSPORT", "Fast")
    if transport not in {"Fast", "Grpc"}:
        raise InvalidConfigError(f"LLMROUTER_EXT_PROC_TRANSPORT: {transport!r} is neither Fast nor Grpc")
    return transport == "Fast"


def _tls(environment: Mapping[str, str]) -> Tls | None:
    """The Service's names and the folder that a Secret is mounted at, which may be empty; plain text without names."""
    service, namespace = environment.get("LLMROUTER_TLS_SERVICE"), environment["LLMROUTER_NAMESPACE"]
    if not service:
        return None
    ends = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    folder = Path(CERTIFICATE_FOLDER) if environment.get("LLMROUTER_TLS_MOUNTED") == "true" else None
    return Tls(tuple(service + end for end in ends), folder)


PORTS = (("GRPC", "9000"), ("METRICS", "9090"))
EXT_PROC = ("EXT_PROC", "9002")
OPENAI = ("OPENAI", "8080")
MAX_PORT = 65_535


def _port(environment: Mapping[str, str], kind: str, default: str) -> int:
    name = f"LLMROUTER_{kind}_PORT"
    text = environment.get(name, default)
    if not text.isdecimal() or not 1 <= int(text) <= MAX_PORT:
        raise InvalidConfigError(f"{name}: {text[:32]!r} is not within 1 and {MAX_PORT}")
    return int(text)


async def first_config(source: ConfigMapSource) -> RouterConfig:
    """The first configuration that can be read and is what its digest says: it tells where the shared ledger is."""

    def refused(error: InvalidConfigError) -> None:
        _log.error("configuration refused: waiting for another", extra={"reason": error.reason, "detail": str(error)})

    async with aclosing(source.bundles(refused)) as bundles:
        async for bundle in bundles:
            try:
                return read_config(bundle)[0]
            except InvalidConfigError as error:
                refused(error)
    raise AssertionError("a source of configurations does not end")


async def serve(environment: Mapping[str, str]) -> None:
    """Runs one router."""
    settings = settings_from(environment)
    api = await connect()
    try:
        core = client.CoreV1Api(api)
        source = ConfigMapSource(
            core,
            namespace=settings.namespace,
            name=environment["LLMROUTER_CONFIG_MAP"],
            on_error=lambda error: _log.warning("configuration watch", extra={"error": str(error)[:500]}),
        )
        config = await first_config(source)
        writer = AcknowledgementWriter(
            core,
            namespace=settings.namespace,
            name=environment["LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP"],
            key=settings.router_id,
        )
        router = compose(settings, state=config.state, source=source, core=core, acknowledge=writer.write)
        await run_until_stopped(
            router, metrics_host=settings.host, metrics_port=settings.metrics_port, place=settings.place
        )
    finally:
        await api.close()


async def _supervise(processes: int, environment: Mapping[str, str]) -> int:
    settings = settings_from(environment)
    return await supervise(
        [sys.executable, "-m", "router_grpc"],
        processes=processes,
        environment=environment,
        metrics_host=settings.host,
        metrics_port=settings.metrics_port,
    )


def main() -> int:
    """Exit status 2 with one line on a bad environment."""
    configure_logging(os.environ.get("LLMROUTER_LOG_LEVEL", "INFO"))
    try:
        processes = processes_in(os.environ)
        if processes > 1 and place_in(os.environ) is None:
            return uvloop.run(_supervise(processes, os.environ))
        uvloop.run(serve(os.environ))
    except InvalidConfigError as error:
        print(f"router_grpc: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
