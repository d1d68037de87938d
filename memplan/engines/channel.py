"""Messages over a socket pair, between memplan and an engine worker of its own."""

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
    """One end. Messages are JSON objects, and one of them may have bytes under ``packed``; order is
    kept; a message may be megabytes long."""

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
        data = b"".join(map(_framed, messages))
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
        self._unsent += _framed(message)
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
            messages = self._whole()
            if messages:
                return messages

    def _whole(self) -> list[dict[str, Any]]:
        """Takes the messages that are there in full out of what has come."""
        found, at = [], 0
        while (end := self._pending.find(b"\n", at)) >= 0:
            message = json.loads(self._pending[at:end])
            after = end + 1
            if "packed" in message:
                packed = self._pending[after : after + message["packed"]]
                if len(packed) < message["packed"]:
                    break
                after += len(packed)
                message["packed"] = bytes(packed)
            found.append(message)
            at = after
        del self._pending[:at]
        return found

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


def _framed(message: dict[str, Any]) -> bytes:
    """One line; bytes come behind it, and it says how many."""
    packed = message.get("packed")
    head = message if packed is None else {**message, "packed": len(packed)}
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + (packed or b"")
