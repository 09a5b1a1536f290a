"""A configuration made runnable, and what a router says of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support.pools import view
from support.router_world import FakeClock, bundle_of, config_of, said_of

from llmrouter.artefacts import builtin_model
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.lengths.drift import Drift
from llmrouter.routing.lateness import LATE_IN_A_ROW
from router_grpc.runtime import ConfigBundle, RuntimeBuilder, read_config

if TYPE_CHECKING:
    from router_grpc.runtime import Runtime


class TestRuntime:
    @pytest.fixture(autouse=True)
    def _builder(self) -> None:
        self.builder = RuntimeBuilder(FakeClock())
        self.model, self.manifest = builtin_model("policy", "marginal-cost")
        self.sha256 = str(json.loads(self.manifest)["sha256"])

    def bundle(self, *, model: bytes | None = None, manifest: bytes | None = None, sha256: str = "") -> ConfigBundle:
        policy = {"type": "Onnx", "model": {"configMap": {"name": "m"}, "sha256": sha256 or self.sha256}}
        config = config_of(policy=policy, model_sha256=sha256 or self.sha256)
        return bundle_of(config, model=model or self.model, manifest=manifest or self.manifest)

    def test_a_model_from_the_configuration_decides(self) -> None:
        runtime = self.builder.build(self.bundle())
        assert (runtime.deciding, runtime.policy_readiness.ready) == ("Onnx", True)
        assert runtime.provider

    def refused(self, bundle: ConfigBundle) -> Runtime:
        with pytest.raises(ModelRejectedError) as error:
            self.builder.build(bundle)
        runtime = self.builder.build_on_fallback(bundle, error.value)
        assert (runtime.deciding, runtime.policy_readiness.ready) == ("LeastInFlight", False)
        assert runtime.policy_readiness.reason == error.value.reason
        return runtime

    def test_a_policy_that_rests_is_acknowledged_so(self) -> None:
        runtime = self.builder.build(self.bundle())
        for _ in range(LATE_IN_A_ROW):
            runtime.guard._lateness.note(1.0)
        said = said_of(runtime)
        assert (said.policy_ready, said.policy_reason, said.deciding) == (False, "TooSlow", "LeastInFlight")
        assert (said.config_digest, said.instances_ready, said.state_backend_ready) == (runtime.digest, 1, None)

    def test_the_kill_switch_needs_no_model_and_is_acknowledged(self) -> None:
        """The fallback decides by its own room, though the policy's model is missing."""
        policy = {"type": "Onnx", "model": {"configMap": {"name": "m"}, "sha256": self.sha256}}
        guard = {"forceFallback": True, "fallback": "LMetric"}
        runtime = self.builder.build(bundle_of(config_of(policy=policy | {"guard": guard}, model_sha256=self.sha256)))
        said = said_of(runtime)
        assert (said.policy_ready, said.policy_reason, said.deciding) == (False, "Forced", "LMetric")
        assert "guard.forceFallback" in said.policy_message
        assert runtime.guard.room_of(view("a")) == runtime.guard.fallback.room_of(view("a"))

    def test_a_length_model_that_rests_is_acknowledged_so(self) -> None:
        runtime = self.builder.build(bundle_of(config_of(predictor={"type": "RandomForest"})))
        for resting, reason in ((True, "TooSlow"), (False, "Loaded")):
            said = said_of(runtime, resting=resting)
            assert (said.predictor_ready, said.predictor_reason) == (not resting, reason)

    def test_a_drift_of_lengths_is_acknowledged(self) -> None:
        runtime = self.builder.build(self.bundle())
        assert (said_of(runtime).length_drift, said_of(runtime).length_drift_message) == (False, "")
        assert said_of(runtime, drift_known=False).length_drift is None
        said = said_of(runtime, drift=Drift("AnswersLonger", "chat: answers are longer than was said", "chat", 40))
        assert (said.length_drift, said.length_drift_message) == (True, "chat: answers are longer than was said")

    def test_half_a_model_is_refused(self) -> None:
        self.refused(self.bundle(model=self.model[: len(self.model) // 2]))

    def test_a_wrong_digest_is_refused(self) -> None:
        self.refused(self.bundle(sha256="0" * 64))

    def test_an_extra_feature_is_refused(self) -> None:
        manifest: dict[str, Any] = json.loads(self.manifest)
        text = json.dumps(manifest)
        name = str(manifest["features"][0] if "features" in manifest else manifest["featureNames"][0])
        self.refused(self.bundle(manifest=text.replace(f'"{name}"', f'"{name}", "star_sign"', 1).encode()))

    def test_no_model_at_all_is_refused(self) -> None:
        bundle = self.bundle()
        self.refused(ConfigBundle(bundle.content, bundle.declared_digest))

    def test_a_shipped_policy_model_that_is_missing_is_stood_in_for(self) -> None:
        def find(_kind: str, name: str) -> tuple[bytes, bytes]:
            raise InvalidConfigError(f"no {name} is shipped", reason="ModelNotFound")

        self.builder = RuntimeBuilder(FakeClock(), find)
        policy = {"type": "Onnx", "model": {"builtin": "marginal-cost"}}
        self.refused(bundle_of(config_of(policy=policy)))

    def test_a_configuration_that_is_not_what_its_digest_says_is_refused(self) -> None:
        bundle = bundle_of(config_of())
        with pytest.raises(InvalidConfigError, match="edited by hand") as refusal:
            read_config(ConfigBundle(bundle.content + b" ", bundle.declared_digest))
        assert refusal.value.reason == "DigestMismatch"
