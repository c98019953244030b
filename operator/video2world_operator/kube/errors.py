"""Define the errors of the API server client."""

from __future__ import annotations

__all__ = ["ApiError", "LoginFailed", "Throttled"]


class ApiError(Exception):
    """The API server refused a request: the HTTP ``code``, and its ``reason`` and message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP {code}")
        self.code, self.reason = code, reason

    @property
    def lasting(self) -> bool:
        """Whether the same request would be refused again.

        A server-side apply of a field that the CRD does not have is answered with 500.
        """
        return self.code in (400, 422) or "field not declared in schema" in str(self)


class Throttled(ApiError):
    """The API server asks to retry after ``seconds``."""

    def __init__(self, code: int, reason: str, message: str, seconds: float) -> None:
        super().__init__(code, reason, message)
        self.seconds = seconds


class LoginFailed(Exception):
    """No cluster can be reached with the credentials at hand; the message names the remedy."""
