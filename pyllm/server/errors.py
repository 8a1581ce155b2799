"""What goes wrong, as OpenAI's clients expect to be told of it."""

from __future__ import annotations

from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}


class ApiError(Exception):
    """An answer that is an error.

    status       of HTTP
    param        the field that is at fault
    code         a word for programs
    retry_after  seconds after which it may be tried again
    more         further members of the error
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self.more = retry_after, more

    @property
    def body(self) -> dict[str, Any]:
        """The object that is sent."""
        kind = TYPES.get(self.status, "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error | self.more}


def bad(message: str, param: str | None = None, code: str | None = None, **more: Any) -> ApiError:
    """A request that cannot be answered as it is: 400."""
    return ApiError(400, message, param=param, code=code, **more)
