# How the objects of a quick class are filled: see filling.pyi.

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_XDECREF

cdef extern from "structmember.h":
    ctypedef struct PyMemberDef:
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef* d_member

cdef extern from *:
    """
    #define SET_INIT(type, function) (((PyTypeObject*) (type))->tp_init = (initproc) (function))
    """
    void SET_INIT(PyObject* kind, int (*function)(object, PyObject*, PyObject*) except -1)

cdef enum:
    MOST = 32

cdef enum Origin:
    GIVEN, DEFAULT, MADE

MOST_FIELDS = MOST
cdef dict _plans = {}


cdef class _Plan:
    cdef object by_name
    cdef bint has_post_init
    cdef int count, positional
    cdef tuple names, values
    cdef int[MOST] origins
    cdef Py_ssize_t[MOST] offsets


cdef int _fill(self, PyObject* args, PyObject* kwargs) except -1:
    cdef _Plan plan = <_Plan> _plans[type(self)]
    cdef tuple by_place = <tuple> args
    cdef dict named = <dict> kwargs if kwargs != NULL else None
    cdef Py_ssize_t given = len(by_place), used = 0
    cdef PyObject** at
    cdef PyObject* before
    cdef int place
    if given > plan.positional:
        return _by_name(plan, self, by_place, named)
    for place in range(plan.count):
        name = plan.names[place]
        if place < given:
            value = by_place[place]
        elif named is not None and name in named:
            value = named[name]
            used += 1
        elif plan.origins[place] == DEFAULT:
            value = plan.values[place]
        elif plan.origins[place] == MADE:
            value = plan.values[place]()
        else:
            return _by_name(plan, self, by_place, named)
        at = <PyObject**> (<char*> <PyObject*> self + plan.offsets[place])
        before = at[0]
        Py_INCREF(value)
        at[0] = <PyObject*> value
        Py_XDECREF(before)
    if named is not None and used != len(named):
        return _by_name(plan, self, by_place, named)
    if plan.has_post_init:
        self.__post_init__()
    return 0


cdef int _by_name(_Plan plan, self, tuple by_place, dict named) except -1:
    """What the class would do by itself: it says what is wrong with the call."""
    plan.by_name(self, *by_place, **(named or {}))
    return 0


def fill(kind, by_name, fields, positional):
    cdef _Plan plan = _Plan()
    cdef int place
    if len(fields) > MOST:
        raise ValueError(f"{kind.__name__} has {len(fields)} fields, more than {MOST}")
    plan.by_name, plan.has_post_init = by_name, hasattr(kind, "__post_init__")
    plan.count, plan.positional = len(fields), positional
    plan.names, plan.values = tuple([one[0] for one in fields]), tuple([one[2] for one in fields])
    for place in range(plan.count):
        slot = kind.__dict__[plan.names[place]]
        if type(slot).__name__ != "member_descriptor" or slot.__objclass__ is not kind:
            raise TypeError(f"{kind.__name__}.{plan.names[place]} is no slot")
        plan.offsets[place] = (<PyMemberDescrObject*> <PyObject*> slot).d_member.offset
        plan.origins[place] = ("given", "default", "made").index(fields[place][1])
    _plans[kind] = plan
    SET_INIT(<PyObject*> kind, _fill)
