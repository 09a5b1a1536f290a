"""A whole router with a model on its volume: missing, then there, then another one that is wrong."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from support.router_world import config_of, live_router, until

from llmrouter.artefacts import builtin_model

if TYPE_CHECKING:
    from pathlib import Path

MODEL, MANIFEST = builtin_model("policy", "marginal-cost")
SHA256 = hashlib.sha256(MODEL).hexdigest()


def on_volume(path: str, sha256: str = SHA256) -> dict[str, Any]:
    claim = {"claimName": "models", "path": path}
    return {"type": "Onnx", "model": {"persistentVolumeClaim": claim, "sha256": sha256}}


async def test_a_model_that_comes_late_is_taken_up_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    first = config_of(policy=on_volume("cost/1"), model_sha256=SHA256)
    async with live_router(first, models=tmp_path / "volume", kept_models=tmp_path / "kept") as live:
        service = live.router.app.service

        def deciding() -> str:
            now = service.runtime
            return "" if now is None else f"{now.deciding} {now.policy_now.reason}"

        assert deciding() == "LeastInFlight ModelNotFound"

        folder = tmp_path / "volume" / "cost" / "1"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(MANIFEST)
        (folder / "model.onnx").write_bytes(MODEL)

        await live.router.app._look_for_models()  # rather than wait for its turn
        await until(lambda: deciding() == "Onnx Active", what="the model of the volume decides")
        await until(lambda: live.acknowledgements[-1].policy_ready, what="acknowledged")

        live.source.push(config_of(policy=on_volume("cost/2", "0" * 64), model_sha256="0" * 64))
        await until(lambda: deciding() == "Onnx ModelNotFound", what="the next is refused, the last good one stays")
        assert service.runtime is not None
        assert service.runtime.refused_digest is not None
