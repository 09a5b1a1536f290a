"""Status codes of gRPC that a router ends calls with, for parts that know no gRPC library."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """As gRPC numbers them."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
