"""Let nobody but the page that was opened from the printed address reach the server."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 32  # 256 bits
MOST_BYTES = 8 * 2**20  # of a request's body
MOST_SECONDS = 20.0  # in which a request's body must arrive
WRITES_WITH = (b"x-torchdoctor-review", b"1")  # a header that no page of another origin can send
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def new_token() -> str:
    """Return a secret for the address of the page.

    Returns:
        256 random bits, in letters that may stand in an address.
    """
    return secrets.token_urlsafe(TOKEN_BYTES)


class Refused(Exception):
    """A request that is not answered, with the status and a sentence that says why."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        """Keep both.

        Args:
            status: The HTTP status.
            sentence: Why.
        """
        super().__init__(sentence)
        self.status = status


def refusal(_request: object, refused: Exception) -> PlainTextResponse:
    """Return the answer to a request that is refused.

    Args:
        _request: The request; not used.
        refused: Why it is refused.

    Returns:
        A sentence; the connection is closed after it.
    """
    status = refused.status if isinstance(refused, Refused) else HTTPStatus.BAD_REQUEST
    return PlainTextResponse(f"{refused}\n", status, {"connection": "close"})


class Guard:
    """Checks every request before the application sees it, and takes the token out of its path.

    The token is a part of the path and no cookie: cookies are shared by all servers of a machine.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        hosts: Collection[str],
        *,
        most_bytes: int = MOST_BYTES,
        most_seconds: float = MOST_SECONDS,
    ) -> None:
        """Guard an application.

        Args:
            app: The application.
            token: The secret that the path begins with.
            hosts: What the header Host may hold, such as `127.0.0.1:8000`.
            most_bytes: The largest body of a request, in bytes.
            most_seconds: How long a body may take to arrive, in seconds.
        """
        self.app, self.token, self.hosts = app, token.encode(), frozenset(hosts)
        self.most_bytes, self.most_seconds = most_bytes, most_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it.

        Args:
            scope: The connection, as ASGI describes it.
            receive: Gives the parts of the request.
            send: Takes the parts of the answer.
        """
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSocket is served
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                known = {name for name, _ in message.get("headers", [])}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [
                    *message.get("headers", []), *(pair for pair in more if pair[0] not in known)
                ]  # fmt: skip
            await send(message)

        try:
            inner = self._checked(scope)
            await self.app(inner, self._limited(receive), guarded_send)
        except Refused as refused:
            if not started:
                await refusal(None, refused)(scope, receive, guarded_send)

    def _checked(self, scope: Scope) -> dict[str, Any]:
        """Return the request without its token; Refused where anything about it is wrong."""
        headers = scope["headers"]
        host = _only(headers, b"host")
        if host is None or host.decode("latin-1").lower() not in self.hosts:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this address is not served here")
        origin = _only(headers, b"origin")
        if origin is not None and origin.lower() != b"http://" + host.lower():
            raise Refused(HTTPStatus.FORBIDDEN, "a page of another origin may not ask")
        token, slash, rest = scope["path"].removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token) or not slash:
            raise Refused(HTTPStatus.FORBIDDEN, "the address lacks its token: use the one that was printed")
        if scope["method"] not in ("GET", "HEAD"):
            self._check_write(headers, origin, scope["method"])
        return {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}

    def _check_write(self, headers: list[tuple[bytes, bytes]], origin: bytes | None, method: str) -> None:
        """Refuse a write that does not come from the page."""
        if method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "expected GET or POST")
        if origin is None:
            raise Refused(HTTPStatus.FORBIDDEN, "a write without an origin")
        if _only(headers, WRITES_WITH[0]) != WRITES_WITH[1]:
            raise Refused(HTTPStatus.FORBIDDEN, "a write without the header of the page")
        if (_only(headers, b"content-type") or b"").partition(b";")[0].strip() != b"application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = _only(headers, b"content-length")
        if length is not None and length.isdigit() and int(length) > self.most_bytes:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` with limits to the size of a body, and to the time until it is complete."""
        size = 0
        deadline = asyncio.get_running_loop().time() + self.most_seconds
        complete = False

        async def limited() -> Message:
            nonlocal size, complete
            if complete:  # only the end of the connection is left to wait for
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise Refused(HTTPStatus.REQUEST_TIMEOUT, "the request took too long") from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self.most_bytes:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
            return message

        return limited


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the value of a header; None where it is missing, Refused where it comes twice."""
    values = [value for key, value in headers if key.lower() == name]
    if len(values) > 1:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name.decode()} comes twice")
    return values[0] if values else None
