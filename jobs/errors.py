"""Errors that a client of the service can cause or meet; `api.errors` gives each class its HTTP code.

MedtuneError          code, message, param, details
├── InvalidRequest    the request cannot be carried out as it stands
├── NotAuthenticated  no valid key
├── Forbidden         the key may not do that
├── NotFound          no such thing for this tenant
├── Conflict          the thing's state does not allow it
├── KeyReused         another request came with the same idempotency key
├── LimitReached      as many as the key may have
└── TooLarge          more bytes than allowed

LeaseLost             a worker's own: the job belongs to somebody else now
"""

from typing import Any


class MedtuneError(Exception):
    """A clear sentence, a stable code, and the field that it is about."""

    def __init__(self, code: str, message: str, *, param: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.details = details


class InvalidRequest(MedtuneError):
    """The request cannot be carried out as it stands."""


class NotAuthenticated(MedtuneError):
    """No valid key."""


class Forbidden(MedtuneError):
    """The key may not do that."""


class NotFound(MedtuneError):
    """No such thing for this tenant."""


class Conflict(MedtuneError):
    """The thing's state does not allow it."""


class KeyReused(MedtuneError):
    """Another request came with the same idempotency key."""


class LimitReached(MedtuneError):
    """As many as the key may have; later it may work."""


class TooLarge(MedtuneError):
    """More bytes than allowed."""


class LeaseLost(Exception):
    """The job belongs to somebody else now, or is final: stop, and write nothing more."""
