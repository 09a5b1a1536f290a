# What a text model reads of one prompt, in one pass: see scan.pyi.
#
# A word is a run of letters, digits and bytes beyond ASCII; ASCII letters count as lower case. The hash of bytes b is
# the sum of (b + 1) * PRIME^place modulo 2^64, the same on every machine; that of a pair of words is the first one's
# times PAIR plus the second one's.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    SPACE, NEWLINE, CODE, PUNCTUATION, CONTROL, LOWER, UPPER, DIGIT, BEYOND, CLASSES

cdef enum:
    GRAM = 4
    MOST_WORDS = 2_049  # of a window of 4,096 bytes, one more than it can have
    HASH_BITS = 15
    KEY_BYTES = 8
    KIND_BITS = 13
    NUMBER = 1
    UNIT = 2

MAX_WINDOW_BYTES = 4_096
SLOT_BITS = KIND_BITS

cdef uint64_t PRIME = 0x100000001B3ULL
cdef uint64_t PAIR = 0xC2B2AE3D27D4EB4FULL
cdef uint64_t MIX_A = 0x9E3779B97F4A7C15ULL
cdef uint64_t MIX_B = 0xC2B2AE3D27D4EB4FULL

cdef uint8_t _class_of[256]
cdef uint64_t _lower_plus_1[256]


cdef void _fill_tables() noexcept:
    cdef int byte
    for byte in range(256):
        _lower_plus_1[byte] = byte + (33 if 65 <= byte <= 90 else 1)
        if byte >= 0x80:
            _class_of[byte] = BEYOND
        elif 65 <= byte <= 90:
            _class_of[byte] = UPPER
        elif 97 <= byte <= 122:
            _class_of[byte] = LOWER
        elif 48 <= byte <= 57:
            _class_of[byte] = DIGIT
        elif byte == 10:
            _class_of[byte] = NEWLINE
        elif byte == 32 or byte == 9 or byte == 13:
            _class_of[byte] = SPACE
        elif byte < 32 or byte == 127:
            _class_of[byte] = CONTROL
        else:
            _class_of[byte] = PUNCTUATION
    for byte in b"{}()[]<>=;_\\":
        _class_of[byte] = CODE


_fill_tables()


cdef struct Words:
    int count
    int32_t starts[MOST_WORDS]
    int32_t ends[MOST_WORDS]


cdef void _find_words(const uint8_t* text, int size, Words* words) noexcept:
    cdef int place, count = 0
    cdef bint inside = False, is_word
    for place in range(size):
        is_word = _class_of[text[place]] >= LOWER
        if is_word != inside:
            if is_word:
                words.starts[count] = place
            else:
                words.ends[count] = place
                count += 1
            inside = is_word
    if inside:
        words.ends[count] = size
        count += 1
    words.count = count


cdef uint64_t _hash(const uint8_t* text, int start, int end) noexcept:
    cdef uint64_t value = 0
    cdef int place = end
    while place > start:
        place -= 1
        value = value * PRIME + _lower_plus_1[text[place]]
    return value


cdef int32_t _id(uint64_t value, uint64_t salt) noexcept:
    cdef int32_t found
    if value == 0:
        return 0
    value = (value ^ salt) * MIX_A
    value ^= value >> 31
    value *= MIX_B
    found = <int32_t> (value >> (64 - HASH_BITS))
    return found if found > 0 else 1


cdef void _words_and_pairs(
    const uint8_t* text, Words* words, int32_t* word_ids, int32_t* pair_ids, int width, bint last,
    uint64_t word_salt, uint64_t pair_salt,
) noexcept:
    """The first so many words and pairs of neighbours, or the last so many; 0 behind them."""
    cdef int count = min(words.count, width + 1), taken = min(words.count, width)
    cdef int first = words.count - count if last else 0
    cdef int place, skipped = count - taken if last else 0
    cdef uint64_t value, before = 0
    for place in range(count):
        value = _hash(text, words.starts[first + place], words.ends[first + place])
        if place >= skipped and place - skipped < taken:
            word_ids[place - skipped] = _id(value, word_salt)
        if place > 0:
            pair_ids[place - 1] = _id(before * PAIR + value, pair_salt)
        before = value
    for place in range(taken, width):
        word_ids[place] = 0
    for place in range(max(0, count - 1), width):
        pair_ids[place] = 0


cdef void _grams(const uint8_t* text, int size, int32_t* ids, int width, bint last, uint64_t salt) noexcept:
    """The first so many runs of ``GRAM`` bytes, or the last so many; 0 behind them."""
    cdef int count = min(max(0, size - GRAM + 1), width)
    cdef int place, first = max(0, size - GRAM + 1) - count if last else 0
    for place in range(count):
        ids[place] = _id(_hash(text, first + place, first + place + GRAM), salt)
    for place in range(count, width):
        ids[place] = 0


cdef uint32_t _slot(const uint8_t* text, int start, int end) noexcept:
    """A number below 2^KIND_BITS of the first bytes of a word."""
    cdef uint64_t key = 0
    cdef int place
    for place in range(min(end - start, KEY_BYTES)):
        key |= <uint64_t> (text[start + place] | 0x20) << (8 * place)
    return <uint32_t> ((key * MIX_A) >> (64 - KIND_BITS))


cdef bint _may_ask(const uint8_t* text, Words* words, int upto_byte, const uint8_t* kinds) noexcept:
    """A number, then a unit one or two words later; a word that the end of what is read may cut counts as a unit."""
    cdef int place, since_number = 3
    cdef uint8_t kind
    cdef bint is_last
    for place in range(words.count):
        if words.starts[place] >= upto_byte:
            return False
        kind = kinds[_slot(text, words.starts[place], words.ends[place])]
        is_last = place + 1 == words.count or words.starts[place + 1] >= upto_byte
        since_number += 1
        if since_number <= 2 and (kind & UNIT or (is_last and words.ends[place] > upto_byte)):
            return True
        if kind & NUMBER or _class_of[text[words.starts[place]]] == DIGIT:
            since_number = 0
    return False


def slot_of(word):
    cdef bytes given = word
    return _slot(given, 0, len(given))


def scan(head, tail, ids, widths, salts, kinds, asked_bytes):
    cdef bytes head_bytes = head, tail_bytes = tail, kind_bytes = kinds
    cdef int head_size = min(len(head_bytes), MAX_WINDOW_BYTES), tail_size = min(len(tail_bytes), MAX_WINDOW_BYTES)
    cdef const uint8_t* head_text = head_bytes
    cdef const uint8_t* tail_text = tail_bytes
    cdef int32_t[::1] ids_K = ids
    cdef int of_head, of_tail, pairs_head, pairs_tail, grams_head, grams_tail, place
    cdef uint64_t word_salt, pair_salt, gram_salt
    cdef Words words
    cdef int64_t counts[CLASSES]
    cdef int32_t* at
    of_head, of_tail, pairs_head, pairs_tail, grams_head, grams_tail = widths
    word_salt, pair_salt, gram_salt = salts
    if min(of_head, of_tail, grams_head, grams_tail) < 0 or of_head != pairs_head or of_tail != pairs_tail:
        raise ValueError("as many pairs as words are read")
    if ids_K.shape[0] != 2 * of_head + 2 * of_tail + grams_head + grams_tail or len(kind_bytes) != 1 << KIND_BITS:
        raise ValueError("ids or kinds are not of the size that is read")
    at = &ids_K[0]
    _find_words(head_text, head_size, &words)
    _words_and_pairs(head_text, &words, at, at + of_head + of_tail, of_head, False, word_salt, pair_salt)
    for place in range(CLASSES):
        counts[place] = 0
    for place in range(head_size):
        counts[_class_of[head_text[place]]] += 1
    found = words.count, _may_ask(head_text, &words, asked_bytes, kind_bytes), [counts[place] for place in range(CLASSES)]
    _find_words(tail_text, tail_size, &words)
    _words_and_pairs(
        tail_text, &words, at + of_head, at + 2 * of_head + of_tail, of_tail, True, word_salt, pair_salt
    )
    at += 2 * (of_head + of_tail)
    _grams(head_text, head_size, at, grams_head, False, gram_salt)
    _grams(tail_text, tail_size, at + grams_head, grams_tail, True, gram_salt)
    return found
