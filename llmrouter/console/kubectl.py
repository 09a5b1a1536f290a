"""The API server by way of kubectl, which knows contexts, credentials and proxies; a plugin is never without it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from llmrouter.errors import LLMRouterError

if TYPE_CHECKING:
    from collections.abc import Sequence

WITHIN_S = 30.0
_MESSAGE_CHARACTERS = 500


class KubectlError(LLMRouterError):
    """kubectl is not there, or says that it cannot."""

    reason = "KubectlFailed"


class Kubectl:
    """Runs one kubectl with the words that go before every command: context, kubeconfig, namespace.

    Args:
        words: global options as kubectl takes them.
        program: its name or path.
    """

    def __init__(self, words: Sequence[str] = (), program: str = "kubectl") -> None:
        self._command = [program, *words]

    def get(self, *words: str) -> dict[str, Any]:
        """``kubectl get`` as JSON; raises KubectlError with what kubectl says."""
        found: dict[str, Any] = json.loads(self._run("get", *words, "-o", "json"))
        return found

    def of_pod(self, pod: dict[str, Any], port: int, path: str) -> str:
        """What a pod answers at a port to a (quoted) path, through the API server's proxy; raises as above."""
        metadata = pod["metadata"]
        return self._run(
            "get",
            "--raw",
            f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}:{port}/proxy/{path}",
        )

    def _run(self, *words: str) -> str:
        try:
            done = subprocess.run(  # noqa: S603 - words of ours, no shell
                [*self._command, *words], capture_output=True, text=True, check=False, timeout=WITHIN_S
            )
        except OSError as error:
            raise KubectlError(f"{self._command[0]}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {words[0]}: no answer within {WITHIN_S:g} s") from error
        if done.returncode:
            raise KubectlError(done.stderr.strip()[:_MESSAGE_CHARACTERS] or f"kubectl ended with {done.returncode}")
        return done.stdout
