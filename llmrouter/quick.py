"""Frozen dataclasses that are made often: their slots are filled by compiled code, in a third of the time or less.

``dataclass`` has ``object.__setattr__`` look every field up by its name whenever a frozen object is made. A router
makes dozens of them for each request.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llmrouter.filling import fill

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from dataclasses import Field

T = TypeVar("T")


def quick(cls: type[T]) -> type[T]:
    """Gives a frozen dataclass an ``__init__`` of the same signature and effect; to stand above ``@dataclass``.

    It has no subclasses.

    Raises:
        TypeError: the class is no frozen dataclass, or one of its fields is no plain one.
    """
    kind: Any = cls
    if not kind.__dataclass_params__.frozen:
        raise TypeError(f"{cls.__name__} is not frozen")
    names: dict[str, Any] = {"_MISSING": MISSING}
    made = [one for one in fields(kind) if one.init or one.default_factory is not MISSING or one.default is not MISSING]
    body = [_setting(cls, one, names) for one in made]
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    source = f"def __init__({_parameters(made, names)}):\n" + "\n".join(body or [" pass"])
    exec(source, names)  # noqa: S102 - as dataclass itself does, of names that are its fields'
    init = names["__init__"]
    init.__qualname__, init.__annotations__ = f"{cls.__qualname__}.__init__", kind.__init__.__annotations__
    kind.__init__ = init
    kind.__replace__ = _replacing(cls, made)
    kind.__init_subclass__ = classmethod(_no_subclass)
    _fill(kind, made)
    return cls


def _fill(kind: Any, made: Sequence[Field[Any]]) -> None:  # noqa: ANN401 - a class with slots has no type of its own
    """Has objects filled without a call of ``__init__``, where all fields are slots and parameters."""
    taken = sorted(made, key=lambda one: one.kw_only is True)
    if all(one.init and one.name in kind.__dict__.get("__slots__", ()) for one in taken):
        fill(kind, kind.__init__, [_filled(one) for one in taken], sum(not one.kw_only for one in taken))


def _filled(field: Field[Any]) -> tuple[str, Literal["given", "default", "made"], object]:
    if field.default is not MISSING:
        return field.name, "default", field.default
    if field.default_factory is not MISSING:
        return field.name, "made", field.default_factory
    return field.name, "given", None


def _no_subclass(cls: type) -> None:
    raise TypeError(f"{cls.__name__}: a quick class has no subclasses")


def changed(one: T, /, **changes: object) -> T:
    """As ``dataclasses.replace``, of a quick class, in a third of the time."""
    kind: Any = one
    copy: T = kind.__replace__(**changes)
    return copy


def _replacing(cls: type, made: Sequence[Field[Any]]) -> Callable[..., Any]:
    """``__replace__``: a copy with some fields changed, made as any other."""
    taken = [one for one in made if one.init]
    names: dict[str, Any] = {"_SAME": object(), "_cls": cls}
    given = "".join(f", {one.name}=_SAME" for one in taken)
    kept = ", ".join(
        f"{one.name + '=' if one.kw_only else ''}self.{one.name} if {one.name} is _SAME else {one.name}"
        for one in sorted(taken, key=lambda one: one.kw_only is True)
    )
    exec(f"def __replace__(self, *{given}):\n return _cls({kept})" if taken else "", names)  # noqa: S102 - as above
    replacing: Callable[..., Any] = names.get("__replace__", lambda self: self)
    return replacing


def _parameters(made: Sequence[Field[Any]], names: dict[str, Any]) -> str:
    taken = [one for one in made if one.init]
    plain = [_parameter(one, names) for one in taken if not one.kw_only]
    by_name = [_parameter(one, names) for one in taken if one.kw_only]
    return ", ".join(["self", *plain, *(["*", *by_name] if by_name else [])])


def _parameter(field: Field[Any], names: dict[str, Any]) -> str:
    if field.default is not MISSING:
        names[f"_default_{field.name}"] = field.default
        return f"{field.name}=_default_{field.name}"
    return f"{field.name}=_MISSING" if field.default_factory is not MISSING else field.name


def _setting(cls: type, field: Field[Any], names: dict[str, Any]) -> str:
    """A line that sets a field: through its slot, or in the object's dictionary where it has none."""
    name = field.name
    value = name if field.init else f"_default_{name}"
    if not field.init and field.default is not MISSING:
        names[f"_default_{name}"] = field.default
    if field.default_factory is not MISSING:
        names[f"_make_{name}"] = field.default_factory
        value = f"_make_{name}() if {name} is _MISSING else {name}" if field.init else f"_make_{name}()"
    slot = getattr(cls, name, None)
    if name in getattr(cls, "__slots__", ()) and hasattr(slot, "__set__"):
        names[f"_set_{name}"] = slot.__set__  # type: ignore[union-attr]
        return f" _set_{name}(self, {value})"
    if "__dict__" in dir(cls):
        return f" self.__dict__[{name!r}] = {value}"
    raise TypeError(f"{cls.__name__}.{name} is no plain field")
