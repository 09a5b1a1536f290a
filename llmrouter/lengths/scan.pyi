from numpy import int32
from numpy.typing import NDArray

MAX_WINDOW_BYTES: int
"""Of a head or a tail no more is read."""

SLOT_BITS: int
"""A slot is below 2 to the power of it."""

def slot_of(word: bytes) -> int:
    """Where ``kinds`` has a word in lower case: of its first 8 bytes."""

def scan(
    head: bytes,
    tail: bytes,
    ids: NDArray[int32],
    widths: tuple[int, ...],
    salts: tuple[int, ...],
    kinds: bytes,
    asked_bytes: int,
) -> tuple[int, bool, list[int]]:
    """Reads one prompt's first and last bytes; the words of the head, whether it may ask for a length, and its classes.

    Args:
        head, tail: UTF-8, of which ``MAX_WINDOW_BYTES`` are read. Where a field chooses, it takes from the head the
            first so many and from the tail the last so many, in order.
        ids: (K,), contiguous, is filled: words of head and of tail, pairs of neighbours likewise, runs of 4 bytes
            likewise; 0 where there are no more.
        widths: of those six fields in their order; as many pairs as words.
        salts: of words, of pairs and of runs.
        kinds: for each ``slot_of`` what words may be: 1 a number, 2 a unit that lengths are counted in.
        asked_bytes: of the head, whether a length is asked for is read here.

    Returns:
        How many words the head has; whether a number stands one or two words before a unit (or before a word that the
        end of ``asked_bytes`` cuts); how many bytes of each class the head has: space, newline, code sign,
        punctuation, control, lower case, upper case, digit, beyond ASCII.

    Raises:
        ValueError: the sizes of ``ids``, ``widths`` and ``kinds`` do not belong together.
    """
