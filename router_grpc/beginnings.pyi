from collections.abc import Iterable

KEY_BYTES: int
"""Of a key."""

def hashes_of(text: bytes, key: bytes, block_bytes: int, most: int) -> tuple[int, ...]:
    """SipHash-2-4, 64 bits, of each beginning of a text that ends with a whole block; ``most`` blocks, shortest first.

    Raises:
        ValueError: the key has not ``KEY_BYTES``, or ``block_bytes`` is no multiple of 8 above 0.
    """

def hash_each(numbers: Iterable[int], key: bytes) -> tuple[int, ...]:
    """SipHash-2-4 of each number by itself, as 8 bytes, the lowest first.

    Raises:
        OverflowError: a number is not within 0 and 2^64 - 1.
        ValueError: the key has not ``KEY_BYTES``.
    """
