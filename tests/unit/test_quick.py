"""Frozen dataclasses that are made quickly are otherwise what they were."""

from __future__ import annotations

import copy
import sys
from dataclasses import FrozenInstanceError, dataclass, field, replace
from inspect import signature
from typing import Any

import pytest

from llmrouter.quick import changed, quick


@dataclass(frozen=True, slots=True)
class Plain:
    one: int
    two: list[int] = field(default_factory=list)
    three: str = "3"
    total: int = field(init=False, repr=False, compare=False)
    made: list[int] = field(init=False, default_factory=list)
    four: int = field(kw_only=True, default=4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.one + len(self.two))


@quick
@dataclass(frozen=True, slots=True)
class Made:
    one: int
    two: list[int] = field(default_factory=list)
    three: str = "3"
    total: int = field(init=False, repr=False, compare=False)
    made: list[int] = field(init=False, default_factory=list)
    four: int = field(kw_only=True, default=4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.one + len(self.two))


@quick
@dataclass(frozen=True)
class WithoutSlots:
    one: int
    two: str = "2"


@quick
@dataclass(frozen=True, slots=True)
class Few:
    one: int
    two: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pure:
    one: int
    two: list[int] = field(default_factory=list)
    three: object = "3"
    four: int = field(kw_only=True, default=4)

    def __post_init__(self) -> None:
        if self.one < 0:
            raise ValueError("one is below 0")


@quick
@dataclass(frozen=True, slots=True)
class Filled:
    one: int
    two: list[int] = field(default_factory=list)
    three: object = "3"
    four: int = field(kw_only=True, default=4)

    def __post_init__(self) -> None:
        if self.one < 0:
            raise ValueError("one is below 0")


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, [2, 3]), {"four": 5}),
    ((), {"one": 7, "three": "x"}),
]


@pytest.mark.parametrize(("given", "named"), CALLS)
def test_what_is_made_is_the_same(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    plain, made = Plain(*given, **named), Made(*given, **named)
    for name in ("one", "two", "three", "total", "made", "four"):
        assert getattr(made, name) == getattr(plain, name)
    assert repr(made) == repr(plain).replace("Plain", "Made")
    assert made == Made(*given, **named)
    assert replace(made, three="y").three == "y"


def test_lists_of_a_factory_are_not_shared_and_nothing_can_be_changed() -> None:
    assert Made(1).two is not Made(1).two
    with pytest.raises(FrozenInstanceError):
        Made(1).one = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Made()  # type: ignore[call-arg]
    assert list(signature(Made).parameters) == list(signature(Plain).parameters)


def test_one_without_slots_is_made_as_well_and_one_that_is_not_frozen_is_refused() -> None:
    assert WithoutSlots(1) == WithoutSlots(1, "2")
    assert replace(WithoutSlots(1), two="3").two == "3"
    with pytest.raises(TypeError, match="not frozen"):
        quick(dataclass(slots=True)(type("Loose", (), {"__annotations__": {"one": int}})))


@pytest.mark.parametrize(("given", "named"), CALLS)
@pytest.mark.parametrize("changes", [{}, {"one": 9}, {"two": [1], "four": 8}, {"three": "y", "one": 0}])
def test_a_changed_copy_is_what_replace_makes(
    given: tuple[Any, ...], named: dict[str, Any], changes: dict[str, Any]
) -> None:
    one = Made(*given, **named)
    assert changed(one, **changes) == replace(one, **changes)
    assert changed(one, **changes).total == replace(one, **changes).total


def test_a_field_that_there_is_not_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        changed(Made(1), five=5)


@pytest.mark.parametrize("made", [Made(1, [2]), Few(1, [2])], ids=["many slots", "few slots"])
def test_what_is_made_is_of_its_class_frozen_and_copied_as_any(made: Made | Few) -> None:
    assert type(made) in {Made, Few}
    with pytest.raises(FrozenInstanceError):
        made.one = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        object.__setattr__(made, "more", 2)
    for same in (copy.copy(made), copy.deepcopy(made)):
        assert same == made
        assert type(same) is type(made)


WRONG: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1, [], "3", 4), {}),
    ((1,), {"one": 2}),
    ((1,), {"total": 2}),
    ((), {"two": [], "three": "3"}),
]


@pytest.mark.parametrize(("given", "named"), WRONG)
def test_a_wrong_call_is_refused_in_the_same_words(given: tuple[Any, ...], named: dict[str, Any]) -> None:
    messages = []
    for kind in (Pure, Filled):
        with pytest.raises(TypeError) as refused:
            kind(*given, **named)
        messages.append(str(refused.value).replace("Filled", "Pure"))
    assert messages[0] == messages[1]


def test_a_post_init_and_a_factory_that_raise_are_heard() -> None:
    def fails() -> list[int]:
        raise LookupError("no list")

    @quick
    @dataclass(frozen=True, slots=True)
    class Failing:
        one: int
        two: list[int] = field(default_factory=fails)

    with pytest.raises(LookupError, match="no list"):
        Failing(1)
    assert Failing(1, [2]).two == [2]
    with pytest.raises(ValueError, match="below 0"):
        Filled(-1)


def test_what_is_held_is_let_go() -> None:
    """Also where an object is filled again, or a call fails half-way."""
    held = object()
    before = sys.getrefcount(held)
    for _ in range(100):
        one = Filled(1, [], held)
        one.__init__(2, [], held)  # type: ignore[misc]
        with pytest.raises(TypeError):
            Filled(1, [], held, five=5)  # type: ignore[call-arg]
    assert one.one == 2
    del one
    assert sys.getrefcount(held) == before


def test_there_are_no_subclasses() -> None:
    for kind in (Made, Few):
        with pytest.raises(TypeError, match="no subclasses"):
            type("Sub", (kind,), {})
