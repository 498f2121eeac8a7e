"""Run the server of a review on an address of this machine until it is stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from torchdoctor.review.security import Guard, new_token
from torchdoctor.review.server import application
from torchdoctor.review.session import Session
from torchdoctor.types import InputError

HEADER_SECONDS = 10.0  # in which the first line and the headers of a request must arrive
WRITE_SECONDS = 20.0  # in which a reader must take a part of its answer
IDLE_SECONDS = 15  # after which an idle connection is closed
STOP_SECONDS = 3  # that answers under way get when the server is stopped
CONNECTIONS = 64  # at once


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose request does not arrive in time."""

    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin a connection and its time.

        Args:
            transport: The connection.
        """
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request.

        Args:
            data: The bytes.
        """
        was_idle = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if not waiting:
            self._stop()
        elif was_idle and self._deadline is None:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection.

        Args:
            exc: Why it ended; None: it was closed.
        """
        self._stop()
        self._stop_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for a reader that does not take its answer, but not for ever."""
        super().pause_writing()
        self._stop_writing()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on with a reader that has taken enough."""
        super().resume_writing()
        self._stop_writing()

    def _start(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _stop_writing(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None


def bound_socket(host: str, port: int) -> socket.socket:
    """Take an address of this machine.

    Args:
        host: The address or name.
        port: The port; 0: a free one.

    Returns:
        A socket that is bound to it.

    Raises:
        InputError: The address is not one of this machine, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {host!r} --port {port}: cannot be served ({error}); leave both out for a free port of "
            "this machine alone"
        ) from error
    return opened


def is_loopback(opened: socket.socket) -> bool:
    """Tell whether an address can be reached from this machine alone.

    Args:
        opened: A bound socket.

    Returns:
        True for loopback addresses.
    """
    return ipaddress.ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


def served_hosts(opened: socket.socket, host: str) -> tuple[str, ...]:
    """Return what the header Host of a request may hold.

    Args:
        opened: A bound socket.
        host: The address or name that it was asked to serve.

    Returns:
        Names with their port: the address and the name as given; for loopback also `localhost`; for an
        address that means all of the machine's, also the machine's names and addresses.
    """
    address, port = opened.getsockname()[:2]
    names = {host, address}
    if is_loopback(opened):
        names.add("localhost")
    if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
        own = {socket.gethostname(), socket.getfqdn()}
        names |= {"localhost", "127.0.0.1", *own}
        for name in own:
            names |= _addresses(name)
    return tuple(sorted(f"{_bracketed(name)}:{port}".lower() for name in names))


def _addresses(name: str) -> set[str]:
    """Return the addresses of a name; none where it is unknown."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)}
    except OSError:
        return set()


def _bracketed(name: str) -> str:
    """Return a name or address as it stands before a port."""
    return f"[{name}]" if ":" in name else name


def serve(session: Session, opened: socket.socket, host: str, ready: Callable[[str], None]) -> None:
    """Serve a review until Ctrl-C or SIGTERM.

    Args:
        session: The review.
        opened: A bound socket.
        host: The address or name that it was asked to serve.
        ready: Called with the address of the page when it can be opened.
    """
    token = new_token()
    guard = Guard(application(session), token, served_hosts(opened, host))
    server = uvicorn.Server(
        uvicorn.Config(
            guard, http=TimedProtocol, ws="none", loop="asyncio", lifespan="off", log_config=None,
            log_level="error", access_log=False, server_header=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS, limit_concurrency=CONNECTIONS,
        )
    )  # fmt: skip
    address, port = opened.getsockname()[:2]
    shown = "127.0.0.1" if ipaddress.ip_address(address.partition("%")[0]).is_unspecified else host
    opened.listen(CONNECTIONS)
    ready(f"http://{_bracketed(shown)}:{port}/{token}/")
    try:
        server.run(sockets=[opened])
    except KeyboardInterrupt:
        return  # the server raises it again after it has stopped
