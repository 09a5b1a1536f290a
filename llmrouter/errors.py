"""One tree of errors.

LLMRouterError
├── InvalidInputError        the caller must change something; never retried
│   ├── InvalidConfigError   a resource or configuration file
│   └── InvalidRequestError  a routing request
├── ModelRejectedError       an artefact that must not be run: wrong digest, shape, version or bytes
├── FetchError               a model could not be had from where it is; tried again with growing pauses
├── LedgerUnavailableError   the shared ledger did not answer in time; retried in the background
├── SaturatedError           no room now; the caller may retry after ``retry_after_s``
└── NoInstanceError          nothing to route to now; the caller may retry
"""

from __future__ import annotations


class LLMRouterError(Exception):
    """Root of the product's errors. ``reason`` is a CamelCase word fit for a condition or a metric label."""

    reason = "Error"


class InvalidInputError(LLMRouterError):
    """Something a caller wrote is out of its bounds; the message names the field and the bound."""

    reason = "InvalidInput"


class InvalidConfigError(InvalidInputError):
    """A resource or configuration file is invalid; the last good one stays in force."""

    reason = "InvalidConfiguration"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class InvalidRequestError(InvalidInputError):
    """A routing request is out of bounds."""

    reason = "InvalidRequest"


class ModelRejectedError(LLMRouterError):
    """A model must not be run. ``reason`` says which check refused it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class FetchError(LLMRouterError):
    """A model could not be fetched. ``reason`` says why; the message never holds what a server sent."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LedgerUnavailableError(LLMRouterError):
    """The shared ledger did not answer in time."""

    reason = "LedgerUnavailable"


class SaturatedError(LLMRouterError):
    """There is no room, and waiting longer is not allowed."""

    reason = "Saturated"

    def __init__(self, message: str, *, reason: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class NoInstanceError(LLMRouterError):
    """No instance is ready for the request."""

    reason = "NoInstance"
