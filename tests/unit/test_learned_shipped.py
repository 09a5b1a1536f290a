"""The learned policy that is shipped: its graph is what the code makes of its weights, and a router takes it."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.pools import request, snapshot, view
from support.router_world import FakeClock, bundle_of, config_of

from llmrouter.feature_set import LEARNED_FEATURE_VERSION
from llmrouter.manifest import ModelKind, check_manifest, parse_manifest
from llmrouter.profiles import PROFILES
from llmrouter.training.agents import product_network
from llmrouter.training.agents.product_graph import product_model
from llmrouter.training.onnx_files import stable_bytes
from router_grpc.adapters.onnx_model import OnnxSharedNetwork, load_network
from router_grpc.runtime import RuntimeBuilder

FOLDER = Path(__file__).resolve().parents[2] / "models" / "policy" / "learned"
PARTS = ("weights.linear", "hold.matrix0", "hold.bias0", "hold.matrix1", "hold.bias1")


def test_the_graph_is_what_the_code_makes_of_its_weights() -> None:
    shipped = (FOLDER / "model.onnx").read_bytes()
    parts = {one.name: numpy_helper.to_array(one) for one in onnx.load_from_string(shipped).graph.initializer}
    weights_W = np.concatenate([np.ravel(parts[name]) for name in PARTS])
    assert len(weights_W) == product_network.PRODUCT_WEIGHTS
    assert stable_bytes(product_model(weights_W)) == shipped


def test_its_manifest_is_one_that_a_router_takes() -> None:
    manifest = parse_manifest((FOLDER / "manifest.json").read_bytes())
    digest = hashlib.sha256((FOLDER / "model.onnx").read_bytes()).hexdigest()
    check_manifest(manifest, expected_kind=ModelKind.POLICY, model_sha256=digest, expected_sha256=None)
    assert manifest.feature_version == LEARNED_FEATURE_VERSION
    assert manifest.scores["export/worst_relative_difference"] < 1e-4
    assert {source.licence for source in manifest.training_data} == {"Apache-2.0"}


def test_its_card_says_where_it_is_worse() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "docs/learned.md" in card
    assert "is worse" in card


def test_a_router_loads_it() -> None:
    """It also passes the router's probe from the lowest to the highest bounds."""
    manifest = (FOLDER / "manifest.json").read_bytes()
    network, _ = load_network((FOLDER / "model.onnx").read_bytes(), manifest, expected_sha256=None)
    rows = np.zeros((3, product_network.ROW), np.float32)
    rows[:, 4:13] = (500.0, 200.0, 400_000.0, 256.0, 6.5e-3, 2.3e-5, 0.0, 5e-8, 2e-5)
    rows[:, 15] = 1.0
    assert isinstance(network, OnnxSharedNetwork)
    scores = network.scores(rows, np.array([1.0, 0.0, 0.25, 0.25, 0.25, 0.25], np.float32))
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()


FAR = {f"llama-2-70b-{gpu}-tp8{what}" for gpu in ("a100", "h100") for what in ("", "-splitwise")}
"""Engines with more KV than any that it was trained on."""


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_it_decides_for_engines_like_those_it_knows_and_leaves_others_to_the_fallback(name: str) -> None:
    """A pool in ordinary use, with a backlog."""
    policy = {"type": "Learned", "model": {"builtin": "learned"}}
    runtime = RuntimeBuilder(FakeClock()).build(bundle_of(config_of(policy=policy)))
    views = [view(one, requests, profile=PROFILES[name]) for one, requests in (("a", 3), ("b", 9))]
    shown = replace(snapshot(views), taken_at_s=10.0, held=50, head_since_s=9.0)
    seen = [runtime.guard.decide(request(), shown, random.Random(1)) for _ in range(80)]
    if name in FAR:
        assert seen[-1].fallback_reason == "OutOfDistribution"
    else:
        assert {(one.policy, one.fallback_reason, one.actions) for one in seen} == {("Learned", None, ())}
