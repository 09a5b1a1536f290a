"""The command ``llmrouter``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

BAD_INPUT = 2


def parser() -> argparse.ArgumentParser:
    """All commands and their options. Options of a command stand where the command is written."""
    top = argparse.ArgumentParser(
        prog="llmrouter",
        description="Places LLM requests on engine instances by their cost.",
        epilog="llmrouter COMMAND --help explains a command.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="run one router from a file, without Kubernetes and Redis",
        description="Runs one router from a file that holds an LLMRouter, whose pools list endpoints, and its "
        "RoutingPolicy. A changed file is in force within a second; one that is not valid changes nothing.",
    )
    serve.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file with the resources")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument(
        "--predictor",
        type=Path,
        metavar="DIR",
        help="output-length model of one's own, as `llmrouter predictor fit` writes it (default: the shipped one)",
    )
    serve.add_argument(
        "--policy-model",
        type=Path,
        metavar="DIR",
        help="model of types Onnx and Learned of one's own, as `llmrouter train` writes it (default: the shipped one)",
    )
    serve.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="folder in the place of the volume that model.persistentVolumeClaim names",
    )
    serve.add_argument(
        "--tokenizers",
        type=Path,
        metavar="DIR",
        help="folder that models[].tokenizer is below (default: none, prompt tokens are estimated)",
    )
    serve.add_argument(
        "--decisions",
        type=Path,
        metavar="DIR",
        help="folder for decisionLog of the sink File (default: the current one)",
    )
    serve.add_argument(
        "--certificate",
        type=Path,
        metavar="DIR",
        help="folder with tls.crt and tls.key for listeners.extProc (default: one made at start)",
    )
    serve.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the ports and count as one through state.redis (default: %(default)s)",
    )
    for name, help_text in FORWARDED.items():
        commands.add_parser(name, help=help_text, add_help=False)
    return top


FORWARDED = {
    "front": "put a stock Envoy in front of a router, for OpenAI clients and curl",
    "traffic": "send a recorded trace through routers and engines, and measure",
    "engine": "run simulated engines with vLLM's HTTP API",
    "epp-conformance": "ask any endpoint picker whether it speaks the protocol",
    "simulate": "run one policy on one workload, simulated",
    "bench": "compare policies, paired and with intervals, over cells and loads",
    "plan": "say which pools, and how many GPUs, recorded traffic needs",
    "explain": "say one routing decision in words",
    "replay": "estimate from a decision log what another policy would have done",
    "tune": "find better numbers for the default policy on your traffic, or keep the ones you have",
    "validate-engine": "hold the engine model against measured engines, or fit it to one's own",
    "train": "learn a routing agent in simulation, and export it",
    "predictor": "train what foretells the length of answers, and score it against every baseline",
}
"""Commands whose options a module of their own declares, and what they do."""

MODULES = {
    "front": "llmrouter.testbed.front_command",
    "traffic": "llmrouter.testbed.replay",
    "engine": "llmrouter.testbed.engine_server",
    "epp-conformance": "llmrouter.testbed.epp.command",
    "simulate": "llmrouter.study.simulate_command",
    "bench": "llmrouter.study.bench_command",
    "plan": "llmrouter.study.sizing.command",
    "explain": "llmrouter.replay.explain_command",
    "replay": "llmrouter.replay.replay_command",
    "tune": "llmrouter.tuning.command",
    "validate-engine": "llmrouter.validation.command",
    "train": "llmrouter.training.train_command",
    "predictor": "llmrouter.training.predictor_command",
}
"""Where the ``main(rest)`` of such a command is; imported when it runs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 2 with one line on bad input."""
    options, rest = parser().parse_known_args(arguments)
    try:
        if options.command in MODULES:
            module = importlib.import_module(MODULES[options.command])
            return int(module.main(rest))
        if rest:
            parser().error(f"unrecognized arguments: {' '.join(rest)}")
        return _serve(options, sys.argv[1:] if arguments is None else arguments)
    except InvalidInputError as error:
        print(f"llmrouter {options.command}: {error}", file=sys.stderr)
        return BAD_INPUT


def _serve(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from router_grpc.standalone import serve

    if options.processes < 1:
        raise InvalidInputError("--processes: must be at least 1")
    return serve(
        options.config,
        host=options.host,
        predictor=options.predictor,
        tokenizers=options.tokenizers,
        policy_model=options.policy_model,
        models=options.models,
        decisions=options.decisions,
        certificate=options.certificate,
        processes=options.processes,
        command=[sys.executable, "-m", "llmrouter.cli", *arguments],
    )


if __name__ == "__main__":
    sys.exit(main())
