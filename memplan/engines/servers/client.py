"""HTTP/1.1 to a server: streamed requests by the thousand, each a callback, on one event loop.

asyncio moves the bytes and httptools (llhttp) reads them. A connection carries one request at a time and
is used again; nothing is sent twice. Where the system allows no more of them a request waits for one,
and ``most_waiting`` tells of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

import httptools

_CONNECT_S = 10.0


class Exchange(Protocol):
    """Who asked; exactly one ``over`` ends it."""

    def head(self, status: int, content_type: str) -> None: ...

    def body(self, piece: bytes) -> None: ...

    def over(self, fault: str | None) -> None:
        """``fault``: connection_refused, connection_lost (before a status came), stream_cut (after it),
        unreadable_reply; None where the reply is whole."""
        ...


class HttpClient:
    """``url`` is the server's, and everything in it before the path is where requests go."""

    def __init__(
        self,
        url: str,
        *,
        loop: asyncio.AbstractEventLoop,
        headers: Mapping[str, str],
        most_connections: int = 512,
    ) -> None:
        parts = urlsplit(url)
        self._loop = loop
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head += f"Host: {parts.netloc.rpartition('@')[2]}\r\n"
        self._free: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._most_connections = most_connections
        self._open = 0
        self._unsent: deque[tuple[bytes, Exchange]] = deque()
        self.most_waiting = 0
        """Requests that waited for a connection at once."""
        self._tasks: set[asyncio.Task[None]] = set()

    def post(self, path: str, body: bytes, exchange: Exchange) -> None:
        """Sends at once where a connection is free, else as soon as there is one."""
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._send(head.encode() + body, exchange)

    def get(self, path: str, exchange: Exchange) -> None:
        head = f"GET {self._prefix}{path} HTTP/1.1\r\n{self._head}\r\n"
        self._send(head.encode(), exchange)

    def abandon(self, exchange: Exchange) -> None:
        """Closes its connection, which tells the server that nobody listens; no ``over`` follows."""
        self._unsent = deque(one for one in self._unsent if one[1] is not exchange)
        for connection in list(self._busy):
            if connection.exchange is exchange:
                connection.exchange = None
                connection.close()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._unsent.clear()
        for connection in [*self._free, *self._busy]:
            connection.exchange = None
            connection.close()

    # --- steps -----------------------------------------------------------------------------

    def _send(self, message: bytes, exchange: Exchange) -> None:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                self._busy.add(connection)
                connection.send(message, exchange)
                return
        if self._open >= self._most_connections:
            self._unsent.append((message, exchange))
            self.most_waiting = max(self.most_waiting, len(self._unsent))
            return
        self._open += 1
        task = self._loop.create_task(self._connect(message, exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, message: bytes, exchange: Exchange) -> None:
        connection = _Connection(self)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.create_connection(
                    lambda: connection, self._host, self._port, ssl=self._tls
                )
        except (OSError, ssl.SSLError, TimeoutError):
            self._open -= 1
            exchange.over("connection_refused")
            self._send_waiting()
            return
        self._busy.add(connection)
        connection.send(message, exchange)

    def _send_waiting(self) -> None:
        if self._unsent:
            self._send(*self._unsent.popleft())

    def is_free(self, connection: _Connection, *, is_kept: bool) -> None:
        """It carries nothing any more; ``is_kept``: it can carry something else."""
        self._busy.discard(connection)
        if is_kept:
            self._free.append(connection)
            self._send_waiting()
        else:
            connection.close()

    def is_closed(self) -> None:
        """One connection less."""
        self._open -= 1
        self._send_waiting()


class _Connection(asyncio.Protocol):
    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._transport: asyncio.WriteTransport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._content_type = ""
        self._has_status = False
        self.exchange: Exchange | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: bytes, exchange: Exchange) -> None:
        assert self._transport is not None
        self.exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._content_type, self._has_status = "", False
        self._transport.write(message)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # --- asyncio's side ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None:  # a server that speaks unasked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("unreadable_reply", is_kept=False)

    def connection_lost(self, error: Exception | None) -> None:
        self._end("stream_cut" if self._has_status else "connection_lost", is_kept=False)
        self._client.is_closed()

    # --- httptools' side -----------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._has_status = True
        if self.exchange is not None:
            self.exchange.head(self._parser.get_status_code(), self._content_type)

    def on_body(self, piece: bytes) -> None:
        if self.exchange is not None:
            self.exchange.body(piece)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self._end(None, is_kept=self._parser.should_keep_alive())

    def _end(self, fault: str | None, *, is_kept: bool) -> None:
        exchange, self.exchange = self.exchange, None
        self._parser = None
        if exchange is not None:
            exchange.over(fault)
        self._client.is_free(self, is_kept=is_kept and self.is_open)
