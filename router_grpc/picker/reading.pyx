# Messages of a gateway, as far as a picker reads them: see reading.pyi.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    LONGEST_NAME = 48
    MOST_BYTES = 10  # of a number
    TAG_ENDS_HEADERS = 0x18
    TAG_ENDS_BODY = 0x10
    TAG_METADATA = 0x42
    TAG_CONFIG = 0x5A

cdef struct Part:
    const uint8_t* at
    const uint8_t* end


cdef class Said:
    cdef readonly int kind
    cdef readonly bint ends
    cdef readonly bytes body
    cdef readonly dict headers
    cdef readonly Py_ssize_t header_count
    cdef readonly Py_ssize_t header_bytes
    cdef readonly bytes metadata
    cdef readonly bint has_modes
    cdef readonly int request_mode
    cdef readonly int response_mode


cdef inline bint _number(Part* part, int64_t* found) noexcept:
    """The number that begins there; false where it does not end."""
    cdef uint64_t value = 0
    cdef uint8_t byte
    cdef int shift = 0
    while part.at < part.end and shift < 7 * MOST_BYTES:
        byte = part.at[0]
        part.at += 1
        value |= <uint64_t>(byte & 0x7F) << shift
        if not byte & 0x80:
            found[0] = <int64_t>value
            return True
        shift += 7
    return False


cdef inline bint _cut(Part* part, Part* inner) noexcept:
    """What stands there with its length; false where there is less of it."""
    cdef int64_t size
    if not _number(part, &size) or size < 0 or size > part.end - part.at:
        return False
    inner.at = part.at
    inner.end = part.at + size
    part.at = inner.end
    return True


cdef inline bint _is_plain(Part* text) noexcept:
    cdef const uint8_t* at = text.at
    while at < text.end:
        if at[0] & 0x80:
            return False
        at += 1
    return True


cdef inline bytes _bytes(Part* part):
    return PyBytes_FromStringAndSize(<const char*>part.at, part.end - part.at)


cdef inline bytes _lowered(Part* name):
    cdef uint8_t buffer[LONGEST_NAME]
    cdef Py_ssize_t size = name.end - name.at, place
    for place in range(size):
        buffer[place] = name.at[place] | 0x20 if 0x41 <= name.at[place] <= 0x5A else name.at[place]
    return PyBytes_FromStringAndSize(<const char*>buffer, size)


cdef bint _read_header(Part* header, dict names, dict found, bint is_checked) except -1:
    cdef Part name, value, raw, text
    cdef int tag
    name.at = name.end = value.at = value.end = raw.at = raw.end = header.end
    while header.at < header.end:
        tag = header.at[0]
        header.at += 1
        if tag != 0x0A and tag != 0x12 and tag != 0x1A or not _cut(header, &text):
            return False
        if tag == 0x1A:
            raw = text
        elif not is_checked and not _is_plain(&text):
            return False
        elif tag == 0x12:
            value = text
        else:
            name = text
    if name.end - name.at > LONGEST_NAME:
        return True
    known = names.get(_lowered(&name))
    if known is not None and known not in found:
        if raw.at < raw.end:
            value = raw
        found[known] = PyUnicode_DecodeUTF8(<const char*>value.at, value.end - value.at, "replace")
    return True


cdef bint _read_headers(Part* part, Said said, dict names, bint is_checked) except -1:
    cdef Part headers, header
    cdef int64_t number
    cdef int tag
    cdef bint has_headers = False
    said.headers = {}
    while part.at < part.end:
        tag = part.at[0]
        part.at += 1
        if tag == TAG_ENDS_HEADERS:
            if not _number(part, &number):
                return False
            said.ends = number != 0
            continue
        if tag != 0x0A or has_headers or not _cut(part, &headers):
            return False
        has_headers = True
        said.header_bytes = headers.end - headers.at
        while headers.at < headers.end:
            if headers.at[0] != 0x0A:
                return False
            headers.at += 1
            said.header_count += 1
            if not _cut(&headers, &header) or not _read_header(&header, names, said.headers, is_checked):
                return False
    return True


cdef bint _read_body(Part* part, Said said) except -1:
    cdef Part body
    cdef int64_t number
    cdef int tag
    while part.at < part.end:
        tag = part.at[0]
        part.at += 1
        if tag == TAG_ENDS_BODY:
            if not _number(part, &number):
                return False
            said.ends = number != 0
        elif tag == 0x0A and _cut(part, &body):
            said.body = _bytes(&body)
        else:
            return False
    return True


cdef bint _read_config(Part* part, Said said) except -1:
    cdef int64_t number
    cdef int tag
    said.has_modes = True
    while part.at < part.end:
        tag = part.at[0]
        part.at += 1
        if not _number(part, &number) or tag != 0x08 and tag != 0x10 and tag != 0x18:
            return False
        if tag == 0x08:
            said.request_mode = <int>number
        elif tag == 0x10:
            said.response_mode = <int>number
    return True


def read(bytes message not None, dict names not None, bint is_checked):
    cdef Said said = Said.__new__(Said)
    cdef Part whole, part
    cdef int tag
    cdef bint is_plain
    whole.at = <const uint8_t*>PyBytes_AS_STRING(message)
    whole.end = whole.at + PyBytes_GET_SIZE(message)
    said.body = b""
    while whole.at < whole.end:
        tag = whole.at[0]
        whole.at += 1
        if not _cut(&whole, &part):
            return None
        if tag == TAG_METADATA and said.metadata is None:
            said.metadata = _bytes(&part)
            continue
        if tag == TAG_CONFIG and not said.has_modes:
            is_plain = _read_config(&part, said)
        elif said.kind:
            return None
        else:
            said.kind = tag >> 3
            if tag == 0x12 or tag == 0x1A:
                is_plain = _read_headers(&part, said, names, is_checked)
            elif tag == 0x22 or tag == 0x2A:
                is_plain = _read_body(&part, said)
            else:
                is_plain = is_checked and (tag == 0x32 or tag == 0x3A)
        if not is_plain:
            return None
    return said
