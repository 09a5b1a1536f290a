# The numbers of instances, row by row, and the formulas over them: see table.pyi.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcpy

from llmrouter.routing.inflight import kv_bound

include "llmrouter/routing/rules.pxi"
include "llmrouter/routing/inflight.pxi"

cdef enum:
    FEATURES = CACHED + 1
    TAIL = CACHED - KV
    WEIGHTS = 9


cdef struct Row:
    double x[FEATURES]
    double max_requests
    double kv_limit_tokens
    double decode_reserve_fraction


cdef class Table:
    cdef object _room_of, _tail_of, _seen
    cdef list _views
    cdef dict _serving, _places
    cdef Row* _rows
    cdef Py_ssize_t _count

    def __init__(self, room_of, tail_of):
        self._room_of, self._tail_of, self._seen = room_of, tail_of, None
        self._views, self._serving, self._places = [], {}, {}

    def __dealloc__(self):
        PyMem_Free(self._rows)

    def roomy(self, views, request):
        cdef double prompt = request.prompt_tokens, predicted = request.predicted_output_tokens
        cdef Py_ssize_t place
        cdef int eligible = 0
        cdef list places = []
        cdef const char* serves
        cdef bytes serving
        cdef Row* row
        self._follow(views)
        excluded = request.excluded_instance_ids or None
        serving = self._serving_of(request.model)
        serves = PyBytes_AS_STRING(serving)
        for place in range(self._count):
            if not serves[place]:
                continue
            if excluded is not None and self._views[place].instance.instance_id in excluded:
                continue
            eligible += 1
            row = &self._rows[place]
            if fits(
                row.x[REQUESTS], row.x[CONTEXT], row.x[REMAINING],
                row.max_requests, row.kv_limit_tokens, row.decode_reserve_fraction, prompt, predicted,
            ):
                places.append(place)
        return eligible, places

    def emptier(self, views, request, instance_id):
        cdef Py_ssize_t place
        cdef list places = []
        cdef const char* serves
        cdef bytes serving
        cdef double full
        self._follow(views)
        place = self._places_of()[instance_id]
        full = self._fullness(place)
        serving = self._serving_of(request.model)
        serves = PyBytes_AS_STRING(serving)
        for place in range(self._count):
            if serves[place] and self._fullness(place) < full:
                places.append(place)
        return places

    def scores(self, request, list places, long rule, tuple weights=()):
        cdef double weighed[WEIGHTS]
        cdef double backlog_s = 0.0
        cdef Py_ssize_t place
        if rule == 4 and len(weights) != WEIGHTS:
            raise ValueError(f"{len(weights)} weights, not {WEIGHTS}")
        for place in range(min(WEIGHTS, len(weights))):
            weighed[place] = weights[place]
        self._ask(request, places)
        for place in places:
            backlog_s += queued_prefill_s(self._rows[place].x)
        backlog_s /= max(1, len(places))
        return [score(rule, self._rows[place].x, weighed, backlog_s) for place in places]

    def rows(self, request, list places):
        cdef bytes made = PyBytes_FromStringAndSize(NULL, len(places) * FEATURES * sizeof(double))
        cdef char* at = PyBytes_AS_STRING(made)
        cdef Py_ssize_t place
        self._ask(request, places)
        for place in places:
            memcpy(at, self._rows[place].x, FEATURES * sizeof(double))
            at += FEATURES * sizeof(double)
        return made

    cdef _ask(self, request, list places):
        """Puts what all rows have of a request into some of them."""
        cdef double prompt = request.prompt_tokens, predicted = request.predicted_output_tokens
        cdef Py_ssize_t place
        for place in places:
            if not 0 <= place < self._count:
                raise IndexError(f"place {place} of {self._count}")
            self._rows[place].x[PROMPT], self._rows[place].x[PREDICTED] = prompt, predicted
            self._rows[place].x[CACHED] = 0.0
        cached = request.cached_tokens
        if cached:
            places_of = self._places_of()
            for instance_id, tokens in cached.items():
                found = places_of.get(instance_id)
                if found is not None:
                    self._rows[<Py_ssize_t> found].x[CACHED] = tokens

    cdef _follow(self, views):
        """Reads the views that are not the objects of the last time."""
        cdef Py_ssize_t place, count
        cdef tuple seen
        cdef void* rows
        if views is self._seen:
            return
        seen = views if type(views) is tuple else tuple(views)
        count, self._seen = len(seen), None  # until all are read
        if count != self._count:
            rows = PyMem_Realloc(self._rows, max(1, count) * sizeof(Row))
            if rows == NULL:
                raise MemoryError
            self._rows, self._count = <Row*> rows, count
            self._views, self._serving, self._places = [None] * count, {}, {}
        for place in range(count):
            if seen[place] is not self._views[place]:
                self._read(place, seen[place])
        self._seen = seen

    cdef _read(self, Py_ssize_t place, view):
        cdef Row row
        cdef int index
        before, instance, load, room = self._views[place], view.instance, view.total, self._room_of(view)
        if before is None or before.instance is not instance:
            self._serving, self._places = {}, {}
            tail = self._tail_of(view)
            if len(tail) != TAIL:
                raise ValueError(f"{len(tail)} numbers of a profile, not {TAIL}")
            for index in range(TAIL):
                row.x[KV + index] = tail[index]
        else:
            row = self._rows[place]
        row.x[REQUESTS], row.x[CONTEXT] = load.requests, load.context_tokens
        row.x[QUEUED], row.x[REMAINING] = load.queued_prefill_tokens, load.remaining_decode_tokens
        row.x[PROMPT], row.x[PREDICTED], row.x[CACHED] = 0.0, 0.0, 0.0
        row.max_requests, row.kv_limit_tokens = room.max_requests, kv_bound(room)
        row.decode_reserve_fraction = room.decode_reserve_fraction
        self._rows[place], self._views[place] = row, view

    cdef double _fullness(self, Py_ssize_t place) noexcept:
        cdef double* x = self._rows[place].x
        return fullness(x[REQUESTS], x[CONTEXT], x[SLOTS], x[KV])

    cdef dict _places_of(self):
        if not self._places:
            self._places = {one.instance.instance_id: place for place, one in enumerate(self._views)}
        return self._places

    cdef bytes _serving_of(self, model):
        """Of each instance, whether it serves a model."""
        found = self._serving.get(model)
        if found is None:
            found = self._serving[model] = bytes([model in one.instance.models for one in self._views])
        return found
