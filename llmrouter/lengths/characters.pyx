# Characters of a text by class, in one pass over it: see characters.pyi.

from cpython.unicode cimport PyUnicode_1BYTE_DATA
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)

cdef enum:
    SMALL, CAPITAL, DIGIT, SPACE, PUNCTUATION, CLASSES
    ASCII = 0x80
    BITS = 12  # of a class's place in a word of counts
    AT_ONCE = 4_095  # as many characters are counted in one word

cdef uint8_t _class_of[ASCII]
cdef uint64_t _one_of[ASCII]


cdef void _fill_tables() noexcept:
    cdef int sign
    for sign in range(ASCII):
        if 97 <= sign <= 122:
            _class_of[sign] = SMALL
        elif 65 <= sign <= 90:
            _class_of[sign] = CAPITAL
        elif 48 <= sign <= 57:
            _class_of[sign] = DIGIT
        elif sign == 32 or 9 <= sign <= 13 or 28 <= sign <= 31:
            _class_of[sign] = SPACE
        else:
            _class_of[sign] = PUNCTUATION
        _one_of[sign] = <uint64_t>1 << (BITS * _class_of[sign])


_fill_tables()


cdef struct Counts:
    Py_ssize_t of_class[CLASSES]
    Py_ssize_t words, cjk, others


cdef inline bint _is_cjk(Py_UCS4 sign) noexcept:
    return (
        0x2E80 <= sign < 0xA4D0
        or 0xAC00 <= sign < 0xD7B0
        or 0xF900 <= sign < 0xFB00
        or 0xFF00 <= sign < 0xFFF0
        or 0x20000 <= sign < 0x32000
    )


cdef void _count_ascii(const uint8_t* text, Py_ssize_t size, Counts* counts) noexcept:
    cdef Py_ssize_t start = 0, place, end
    cdef Py_ssize_t words = 0
    cdef uint64_t many
    cdef int kind, is_letter, in_word = 0
    while start < size:
        end = min(size, start + AT_ONCE)
        many = 0
        for place in range(start, end):
            many += _one_of[text[place]]
            is_letter = _class_of[text[place]] <= CAPITAL
            words += is_letter & ~in_word
            in_word = is_letter
        for kind in range(CLASSES):
            counts.of_class[kind] += (many >> (BITS * kind)) & ((1 << BITS) - 1)
        start = end
    counts.words = words


cdef void _count_any(str text, Py_ssize_t start, Py_ssize_t end, Counts* counts):
    cdef Py_ssize_t place
    cdef Py_UCS4 sign
    cdef bint in_word = False, is_letter
    for place in range(start, end):
        sign = text[place]
        is_letter = False
        if sign < ASCII:
            counts.of_class[_class_of[<int>sign]] += 1
            is_letter = _class_of[<int>sign] <= CAPITAL
        elif _is_cjk(sign):
            counts.cjk += 1
        else:
            counts.others += 1
        counts.words += is_letter and not in_word
        in_word = is_letter


def counts_of(str text not None, Py_ssize_t start, Py_ssize_t end):
    cdef Counts counts
    counts.of_class[:] = [0, 0, 0, 0, 0]
    counts.words = counts.cjk = counts.others = 0
    start, end = max(start, 0), min(end, len(text))
    if PyUnicode_IS_ASCII(text):
        if start < end:
            _count_ascii(<const uint8_t*>PyUnicode_1BYTE_DATA(text) + start, end - start, &counts)
    else:
        _count_any(text, start, end, &counts)
    return (
        1.0,
        <double>counts.words,
        <double>(counts.of_class[SMALL] + counts.of_class[CAPITAL]),
        <double>counts.of_class[CAPITAL],
        <double>counts.of_class[DIGIT],
        <double>counts.of_class[PUNCTUATION],
        <double>max(0, counts.of_class[SPACE] - counts.words),
        <double>counts.cjk,
        <double>counts.others,
    )
