"""A loopback server that answers every completion with a stream of its own, as fast as one core can.

    python mock_stream.py GAP_MS

Prints its port. With a gap each token is sent when it is due; without, all at once. It notes when each
request was there and when its last byte went out, so that the truth about the sender is known here:
``GET /truth`` says how many were answered, and the most that were in flight at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

import httptools

GAP_S = float(sys.argv[1]) / 1e3
ASKED = re.compile(rb'"max_tokens": ?(\d+)')
PIECE = b'data: {"choices":[{"text":" a","index":0,"finish_reason":null}]}\n\n'
STATE = {"answered": 0, "in_flight": 0, "most_in_flight": 0}
ARRIVED_S: list[float] = []


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def ending(prompt_tokens: int, tokens: int) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    said = {"choices": [{"text": "", "index": 0, "finish_reason": "length"}], "usage": usage}
    return (
        chunk(b"data: " + json.dumps(said).encode() + b"\n\n")
        + chunk(b"data: [DONE]\n\n")
        + chunk(b"")
    )


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = chunk(PIECE)


class Answers(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.path = b""

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if self.path.endswith(b"/truth") or self.path.endswith(b"/models"):
            data = json.dumps(
                {**STATE, "arrived_s": ARRIVED_S} if self.path.endswith(b"/truth") else {"data": []}
            ).encode()
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (len(data), data)
            )
            return
        loop = asyncio.get_running_loop()
        ARRIVED_S.append(loop.time())
        STATE["in_flight"] += 1
        STATE["most_in_flight"] = max(STATE["most_in_flight"], STATE["in_flight"])
        found = ASKED.search(body)
        tokens = int(found.group(1)) if found else 1
        at = body.find(b"[")
        last = ending(body[at : body.find(b"]", at)].count(b",") + 1, tokens)
        if not GAP_S:
            self.transport.write(HEAD + TOKEN * tokens + last)
            self.is_over()
            return
        self.transport.write(HEAD)
        for number in range(tokens):
            loop.call_later(GAP_S * (number + 1), self.transport.write, TOKEN)
        loop.call_later(GAP_S * (tokens + 1), self.end, last)

    def end(self, last: bytes) -> None:
        self.transport.write(last)
        self.is_over()

    def is_over(self) -> None:
        STATE["in_flight"] -= 1
        STATE["answered"] += 1


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
