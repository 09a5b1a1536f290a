"""Tries a model out in a process of its own, with limits, before it is opened in the router's.

``python -m router_grpc.probing`` reads one model on standard input, opens and runs it, and says on standard output what
became of it. A graph that takes all memory, never ends or kills its process kills that one.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading

from llmrouter.errors import ModelRejectedError
from llmrouter.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, ModelKind, Rejection
from router_grpc.adapters.own_models import Files

WITHIN_S = 15.0
"""Time for one model, the start of the process included."""
MEMORY_BYTES = 2 * 2**30
CPU_S = 10
MAX_ANSWER_BYTES = 8192
MAX_REASON_CHARACTERS = 1024
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def probe(kind: ModelKind, files: Files, *, cpu_s: int = CPU_S) -> None:
    """Raises ModelRejectedError where the model must not run, or its process did not live to say so.

    ``cpu_s`` is the processor time that it may take.
    """
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    child = subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, "-m", "router_grpc.probing", kind.value, str(len(files.model)), str(cpu_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    timer = threading.Timer(WITHIN_S, child.kill)
    timer.start()
    try:
        answer = _ask(child, files)
    finally:
        late = not timer.is_alive()
        timer.cancel()
        child.kill()
        child.wait()
    if late:
        raise ModelRejectedError(Rejection.PROBE_FAILED, f"the model was not tried out within {WITHIN_S:g} s")
    if answer is None:
        message = f"the process that tried the model out did not live to say how it was; it may use {cpu_s} s of a core"
        raise ModelRejectedError(Rejection.PROBE_FAILED, message)
    if answer.get("reason"):
        raise ModelRejectedError(str(answer["reason"])[:64], str(answer.get("message"))[:MAX_REASON_CHARACTERS])


def _ask(child: subprocess.Popen[bytes], files: Files) -> dict[str, object] | None:
    """What the child says; ``None`` where it says nothing that can be read."""
    if child.stdin is None or child.stdout is None:
        return None
    with child.stdin, child.stdout:
        try:
            child.stdin.write(files.model + files.manifest)
            child.stdin.close()
            answer = json.loads(child.stdout.read(MAX_ANSWER_BYTES))
        except (OSError, ValueError):
            return None  # it has died: the caller says so
    return answer if isinstance(answer, dict) else None


def try_out(kind: ModelKind, files: Files) -> None:
    """Opens and runs the model in this very process; raises ModelRejectedError."""
    from router_grpc.adapters.onnx_model import load_model  # noqa: PLC0415 - the runtime belongs to the child alone

    load_model(files.model, files.manifest, kind=kind, expected_sha256=None)


def main() -> int:
    """The child's part."""
    kind, length, cpu_s = ModelKind(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    limits = (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    )
    for what, most in limits:
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))
    content = sys.stdin.buffer.read(MAX_MODEL_BYTES + MAX_MANIFEST_BYTES + 1)
    answer = {"reason": "", "message": ""}
    try:
        try_out(kind, Files(content[:length], content[length:]))
    except ModelRejectedError as error:
        answer = {"reason": str(error.reason), "message": str(error)[:MAX_REASON_CHARACTERS]}
    except MemoryError:
        answer = {"reason": Rejection.PROBE_FAILED, "message": f"the model needs more than {MEMORY_BYTES} bytes"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # the runtime's own end may take long, and is of no interest


if __name__ == "__main__":
    sys.exit(main())
