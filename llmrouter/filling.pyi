from collections.abc import Callable, Sequence
from typing import Literal

MOST_FIELDS: int
"""A class with more is refused."""

def fill(
    kind: type,
    by_name: Callable[..., None],
    fields: Sequence[tuple[str, Literal["given", "default", "made"], object]],
    positional: int,
) -> None:
    """Has the objects of a class with slots filled in place, without a call of its ``__init__``.

    The class is to have no subclasses.

    Args:
        kind: the class.
        by_name: its ``__init__``, which is asked where a call is wrong, and raises.
        fields: in the order of the parameters: the name of a slot, and what it gets where no argument says: nothing,
            for one must say; the third part; or what the third part makes.
        positional: how many of them, the first ones, are parameters that may be given by place.

    Raises:
        TypeError: a field is no slot of the class itself.
        ValueError: there are more than ``MOST_FIELDS``.
    """
