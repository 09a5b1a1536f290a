# Characters of a text by class, in one pass over it: see characters.pyi.

cdef enum:
    SMALL, CAPITAL, DIGIT, SPACE, PUNCTUATION, CLASSES
    ASCII = 0x80

cdef unsigned char _class_of[ASCII]


cdef void _fill_table() noexcept:
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


_fill_table()


cdef inline bint _is_cjk(Py_UCS4 sign) noexcept:
    return (
        0x2E80 <= sign < 0xA4D0
        or 0xAC00 <= sign < 0xD7B0
        or 0xF900 <= sign < 0xFB00
        or 0xFF00 <= sign < 0xFFF0
        or 0x20000 <= sign < 0x32000
    )


def counts_of(str text, Py_ssize_t start, Py_ssize_t end):
    cdef Py_ssize_t counts[CLASSES]
    cdef Py_ssize_t place, words = 0, cjk = 0, others = 0
    cdef Py_UCS4 sign
    cdef int kind
    cdef bint in_word = False, is_letter
    counts[:] = [0, 0, 0, 0, 0]
    for place in range(max(start, 0), min(end, len(text))):
        sign = text[place]
        if sign < ASCII:
            kind = _class_of[<int>sign]
            counts[kind] += 1
            is_letter = kind <= CAPITAL
            words += is_letter and not in_word
            in_word = is_letter
        else:
            in_word = False
            if _is_cjk(sign):
                cjk += 1
            else:
                others += 1
    return (
        1.0,
        <double>words,
        <double>(counts[SMALL] + counts[CAPITAL]),
        <double>counts[CAPITAL],
        <double>counts[DIGIT],
        <double>counts[PUNCTUATION],
        <double>max(0, counts[SPACE] - words),
        <double>cjk,
        <double>others,
    )
