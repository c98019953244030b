"""Define the errors of the API server client."""

from __future__ import annotations

__all__ = ["ApiError", "LoginFailed"]


class ApiError(Exception):
    """The API server refused: ``code`` as in HTTP, ``reason`` and message as it gave them."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP {code}")
        self.code, self.reason = code, reason

    @property
    def lasting(self) -> bool:
        """Whether the same request would be refused again. A field that the definition does not
        have is answered with 500 by a server-side apply."""
        return self.code in (400, 422) or "field not declared in schema" in str(self)


class LoginFailed(Exception):
    """There is no way to reach a cluster; the message names the remedy."""
