"""What a learned network is told: names, preferences and when it may hold."""

from __future__ import annotations

import pytest

from llmrouter.domain import Preferences
from llmrouter.feature_set import FEATURE_NAMES, LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.objectives import PREFERENCES, PRESETS
from llmrouter.routing.sight import LONGEST_HOLD_S, line_of, may_hold


def test_a_row_is_that_of_the_cost_models_and_whether_there_is_room() -> None:
    assert LEARNED_INSTANCE_NAMES[:-1] == FEATURE_NAMES
    assert LEARNED_INSTANCE_NAMES[-1] == "has_room"
    assert len({*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES}) == len(LEARNED_INSTANCE_NAMES) + len(LEARNED_LINE_NAMES)


def test_only_the_proportions_of_preferences_count() -> None:
    assert Preferences(ttft=2.0, tpot=1.0, e2e=1.0, fairness=0.0).shares == (0.5, 0.25, 0.25, 0.0)
    assert Preferences(ttft=0.0, tpot=0.0, e2e=0.0, fairness=0.0).shares == (0.25,) * 4


def test_every_preset_has_preferences() -> None:
    assert set(PREFERENCES) == set(PRESETS)
    for preferences in PREFERENCES.values():
        assert sum(preferences.shares) == pytest.approx(1.0)


def test_the_line_is_told_in_the_order_of_its_names() -> None:
    line = line_of(7, 0.5, Preferences(ttft=1.0, tpot=0.0, e2e=0.0, fairness=0.0))
    assert len(line) == len(LEARNED_LINE_NAMES)
    assert line == (7, 0.5, 1.0, 0.0, 0.0, 0.0)


def test_hold_is_allowed_to_a_young_head_while_nobody_is_idle() -> None:
    assert may_hold(0, 0.0)
    assert not may_hold(1, 0.0)
    assert not may_hold(0, LONGEST_HOLD_S)
