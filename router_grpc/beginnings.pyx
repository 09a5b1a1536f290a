# Keyed hashes of the beginnings of a prompt, in one pass over it: see beginnings.pyi.
#
# SipHash-2-4 (Aumasson and Bernstein, 2012). The hash of a beginning of whole words of 8 bytes is the state after them,
# of which a copy takes the length's own word and the four last rounds.

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    KEY_SIZE = 16
    WORD = 8

KEY_BYTES = KEY_SIZE

cdef uint64_t A = 0x736F6D6570736575ULL
cdef uint64_t B = 0x646F72616E646F6DULL
cdef uint64_t C = 0x6C7967656E657261ULL
cdef uint64_t D = 0x7465646279746573ULL


cdef inline uint64_t _turned(uint64_t value, int bits) noexcept:
    return (value << bits) | (value >> (64 - bits))


cdef inline void _round(uint64_t* a, uint64_t* b, uint64_t* c, uint64_t* d) noexcept:
    a[0] += b[0]
    c[0] += d[0]
    b[0] = _turned(b[0], 13) ^ a[0]
    d[0] = _turned(d[0], 16) ^ c[0]
    a[0] = _turned(a[0], 32)
    c[0] += b[0]
    a[0] += d[0]
    b[0] = _turned(b[0], 17) ^ c[0]
    d[0] = _turned(d[0], 21) ^ a[0]
    c[0] = _turned(c[0], 32)


cdef inline uint64_t _word_at(const uint8_t* place) noexcept:
    """Eight bytes, the lowest first, on any machine."""
    return (
        <uint64_t>place[0]
        | <uint64_t>place[1] << 8
        | <uint64_t>place[2] << 16
        | <uint64_t>place[3] << 24
        | <uint64_t>place[4] << 32
        | <uint64_t>place[5] << 40
        | <uint64_t>place[6] << 48
        | <uint64_t>place[7] << 56
    )


cdef inline void _add(uint64_t* a, uint64_t* b, uint64_t* c, uint64_t* d, uint64_t word) noexcept:
    d[0] ^= word
    _round(a, b, c, d)
    _round(a, b, c, d)
    a[0] ^= word


cdef uint64_t _ended(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t size) noexcept:
    """The hash of the ``size`` bytes that were added."""
    _add(&a, &b, &c, &d, size << 56)
    c ^= 0xFF
    _round(&a, &b, &c, &d)
    _round(&a, &b, &c, &d)
    _round(&a, &b, &c, &d)
    _round(&a, &b, &c, &d)
    return a ^ b ^ c ^ d


cdef const uint8_t* _read(bytes key) except NULL:
    if len(key) != KEY_SIZE:
        raise ValueError(f"key: must be {KEY_SIZE} bytes")
    return key


def hashes_of(bytes text not None, bytes key not None, int block_bytes, int most):
    cdef const uint8_t* raw = _read(key)
    cdef uint64_t low = _word_at(raw), high = _word_at(raw + WORD)
    cdef uint64_t a = low ^ A, b = high ^ B, c = low ^ C, d = high ^ D
    if block_bytes < WORD or block_bytes % WORD:
        raise ValueError(f"block_bytes: must be a multiple of {WORD}")
    raw = text
    cdef Py_ssize_t blocks = min(<Py_ssize_t>max(most, 0), len(text) // block_bytes), block
    cdef int words = block_bytes // WORD, word
    cdef list found = []
    for block in range(1, blocks + 1):
        for word in range(words):
            _add(&a, &b, &c, &d, _word_at(raw))
            raw += WORD
        found.append(_ended(a, b, c, d, <uint64_t>(block * block_bytes)))
    return tuple(found)


def hash_each(numbers, bytes key not None):
    cdef const uint8_t* raw = _read(key)
    cdef uint64_t low = _word_at(raw), high = _word_at(raw + WORD)
    cdef uint64_t a, b, c, d, number
    cdef list found = []
    for number in numbers:
        a, b, c, d = low ^ A, high ^ B, low ^ C, high ^ D
        _add(&a, &b, &c, &d, number)
        found.append(_ended(a, b, c, d, WORD))
    return tuple(found)
