"""What make demo-canary shows, and its bad candidate: a model that any check of a model takes for good."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from llmrouter.artefacts import builtin_model
from llmrouter.feature_set import FEATURE_NAMES, WEIGHT_NAMES
from llmrouter.testbed.demo_canary_model import objects, turned_round
from llmrouter.testbed.demo_canary_view import EVENTS, SECTION, headline, in_short, picture
from llmrouter.testbed.terminal_view import excerpt
from router_grpc.adapters.onnx_model import load_scorer

SAID = {
    "name": "sign-error",
    "phase": "Running",
    "reason": "WithinGuardrails",
    "message": "40 requests within the guardrails",
    "arms": [
        {"arm": "current", "requests": 44, "errors": 0, "ttftMeanSeconds": 0.1, "e2eMeanSeconds": 2.0},
        {"arm": "candidate", "requests": 40, "errors": 1},
    ],
    "comparisons": [{"metric": "ttft", "ratio": 1.5, "low": 0.9, "high": 2.4}],
}
DESCRIBED = """\
Name:         demo
Spec:
  Candidate:
    Mode:  Canary
Status:
  Candidate:
    Arms:
      Arm:     current
    Phase:     RolledBack
  Conditions:
    Type:  CandidateHealthy
Events:
  Type     Reason               Age   From                Message
  ----     ------               ----  ----                -------
  Normal   Ready                23s   llmrouter-operator  2/2 routers
  Warning  CandidateRolledBack  14s   llmrouter-operator  sign-error: TtftWorse
"""


def test_a_line_and_a_table_say_how_it_stands() -> None:
    assert str(headline(SAID)) == "sign-error Running WithinGuardrails: 40 requests within the guardrails"
    assert in_short(SAID) == "  [ttft 1.50]"
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(picture(SAID, {"sent": 90, "done": 84, "failed": 0, "in_flight": 6}))
    shown = console.export_text()
    assert "1.50 (0.90–2.40)" in shown
    assert "90 sent, 84 done, 0 failed, 6 in flight" in shown


def test_a_shadow_has_its_line() -> None:
    shadow = {"decisions": 44, "agreementFraction": 0.25, "costDifferenceSeconds": 0.332}
    said = in_short({"shadow": shadow})
    assert said == "  [shadow: 44 decisions, 25% as decided, +0.332 s of predicted cost a request]"


def test_an_excerpt_has_the_status_and_the_events_of_a_life() -> None:
    shown = excerpt(DESCRIBED, SECTION, EVENTS)
    assert "    Phase:     RolledBack" in shown
    assert "CandidateRolledBack" in shown
    assert "Mode" not in shown
    assert "Ready" not in shown


def test_the_bad_model_answers_the_opposite_and_passes_every_check() -> None:
    bad, good = (load_scorer(*pair, expected_sha256=None) for pair in (turned_round(), marginal_cost()))
    features_IF = np.full((3, len(FEATURE_NAMES)), 0.5, dtype=np.float32)
    weights_W = np.ones(len(WEIGHT_NAMES), dtype=np.float32)
    np.testing.assert_allclose(bad.score(features_IF, weights_W), -good.score(features_IF, weights_W), rtol=1e-5)
    config_map, policy = objects("sign-error")
    assert policy["spec"]["model"]["configMap"]["name"] == config_map["metadata"]["name"]


def marginal_cost() -> tuple[bytes, bytes]:
    return builtin_model("policy", "marginal-cost")
