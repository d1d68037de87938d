"""JSON lines over a socket pair, between memplan and an engine worker of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
from array import array
from collections.abc import Iterable
from typing import Any


def packed(tokens: Iterable[int]) -> str:
    """Token ids as text: a list of Python numbers takes nine times the memory at the other end."""
    return base64.b64encode(array("i", tokens).tobytes()).decode()


def unpacked(text: str) -> array[int]:
    """What ``packed`` made."""
    return array("i", base64.b64decode(text))


class ChannelClosedError(Exception):
    """The other end is gone."""


class Channel:
    """One end. Messages are JSON objects; order is kept; a message may be megabytes long."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(True)
        self._pending = bytearray()
        self._unsent = bytearray()

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Our end, and the socket to hand to the other process."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def send(self, *messages: dict[str, Any]) -> None:
        data = "".join(json.dumps(m, separators=(",", ":")) + "\n" for m in messages).encode()
        unsent, self._unsent = self._unsent, bytearray()
        try:
            self._socket.sendall(unsent + data)
        except OSError as error:
            raise ChannelClosedError from error

    def post(self, message: dict[str, Any]) -> None:
        """Like ``send``, but never waits for a reader that is busy: the rest goes out in ``receive``.

        A worker reads between two steps only, and a step can take a second; a sender that waited
        for it would send the next request late.
        """
        self._unsent += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self._flush()

    def receive(self, timeout_s: float | None) -> list[dict[str, Any]]:
        """All whole messages that are there, waiting at most ``timeout_s`` (None: for ever) for one.

        Raises ChannelClosedError when the other end is gone and all it said has been returned.
        """
        while True:
            writers = [self._socket] if self._unsent else []
            ready, writable, _ = select.select([self._socket], writers, [], timeout_s)
            if writable:
                with contextlib.suppress(ChannelClosedError):
                    self._flush()  # who no longer listens may still have said something
            if not ready:
                return []
            try:
                data = self._socket.recv(1 << 20)
            except OSError as error:
                raise ChannelClosedError from error
            if not data:
                raise ChannelClosedError
            self._pending += data
            head, newline, tail = self._pending.rpartition(b"\n")
            if newline:
                self._pending = tail
                return [json.loads(line) for line in head.split(b"\n")]

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelClosedError from error
        del self._unsent[:sent]

    def close(self) -> None:
        self._socket.close()
