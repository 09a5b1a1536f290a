"""What the README says to type works, as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml
from support.router_world import until

from llmrouter.config_file import parse
from llmrouter.resources import LLMRouterSpec
from llmrouter.testbed.cluster.places import repository_root
from llmrouter.testbed.cluster.processes import free_port, start

if TYPE_CHECKING:
    from pathlib import Path

README = (repository_root() / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
STANDALONE = next(text for kind, text in BLOCKS if kind == "yaml" and "endpoints:" in text)
STEPS = next(text for _, text in BLOCKS if "llmrouter front" in text)


def documents(text: str) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def test_every_resource_of_the_readme_is_valid() -> None:
    declared = [text for kind, text in BLOCKS if kind == "yaml"]
    assert len(declared) == 2
    for text in declared:
        LLMRouterSpec.model_validate(documents(text)["LLMRouter"]["spec"])
    assert parse(STANDALONE).name == "chat"


def command(words: str, ports: dict[str, int]) -> list[str]:
    """A line of the README without its comment, its ports replaced by free ones."""
    found = shlex.split(words.partition("#")[0].rstrip(" &"))
    assert found[0] == "llmrouter"
    return [sys.executable, "-m", "llmrouter.cli", *found[1:], *(str(word) for pair in ports.items() for word in pair)]


async def test_the_first_example_answers(tmp_path: Path) -> None:
    engine_port, front_port = 0, free_port()
    while not engine_port or engine_port >= 65_535:
        engine_port = free_port()
    text = STANDALONE.replace("127.0.0.1:8000", f"127.0.0.1:{engine_port}")
    text = text.replace("127.0.0.1:8001", f"127.0.0.1:{engine_port + 1}").replace("port: 9002", f"port: {free_port()}")
    resources = documents(text)
    resources["LLMRouter"]["spec"]["listeners"] |= {"grpcPort": free_port(), "metricsPort": free_port()}
    (tmp_path / "router.yaml").write_text(yaml.safe_dump_all(resources.values()))
    lines = {line.split()[1]: line for line in STEPS.splitlines() if line.startswith("llmrouter ")}
    ports = {"engine": {"--port": engine_port}, "serve": {}, "front": {"--port": front_port}}
    assert lines.keys() == ports.keys()
    with ExitStack() as stack:
        for name, line in lines.items():
            words = command(line.replace("router.yaml", str(tmp_path / "router.yaml")), ports[name])
            process = start(name, words, log=tmp_path / f"{name}.log", env={**os.environ, "PYTHONUNBUFFERED": "1"})
            stack.callback(process.stop)
        said = shlex.split(STEPS[STEPS.index("curl") :].replace("\\\n", " "))
        body = json.loads(said[said.index("-d") + 1])
        url = "http://" + next(word for word in said if word.startswith("localhost")).replace("8080", str(front_port))
        async with aiohttp.ClientSession() as session:
            last: list[str] = []

            async def answers() -> bool:
                try:
                    async with session.post(url.replace("localhost", "127.0.0.1"), json=body) as answer:
                        last[:] = [await answer.text()]
                        return answer.status == 200 and "x-llmrouter-instance" in answer.headers
                except aiohttp.ClientError:  # not listening yet
                    return False

            await until(answers, what="the example answers", within_s=60)
        assert json.loads(last[0])["usage"]["completion_tokens"] == 20
