"""Replicas of a simulated run, moved as the operator moves them: one step at a time (``planning/steps.py``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from llmrouter.planning.steps import Memory, heard, next_step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.planning.steps import Rules
    from llmrouter.sim.replicas import Replicas


class Stepping(ABC):
    """A planner that has what is ``wanted`` come about step by step."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._memory = Memory()

    @abstractmethod
    def wanted(self, replicas: Replicas, now_s: float) -> Mapping[str, int]:
        """The replicas by pool that there should be."""

    def look(self, replicas: Replicas, *, now_s: float) -> None:
        """One step."""
        wanted = self.wanted(replicas, now_s)
        states = replicas.observed()
        self._memory = heard(self._memory, states, wanted, now_s=now_s)
        step = next_step(states, self._rules, self._memory, now_s=now_s)
        for state in states:
            replicas.drain(state.pool, step.draining.get(state.pool, 0))
        if step.replicas is not None:
            replicas.declare(step.pool, step.replicas)
            self._memory = self._memory.after(step, now_s=now_s)
