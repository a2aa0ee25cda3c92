"""Errors of requests, in the shape that OpenAI's clients read."""

from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "server_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """What is answered instead of a result: an HTTP status, a sentence, the field and a code, and more headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON that is sent."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def failed() -> RequestError:
    """The answer where the server itself is at fault. It names nothing: an exception may quote the texts."""
    return RequestError(
        500, "The server failed at this request. Its log names the fault; the same request may work again."
    )
