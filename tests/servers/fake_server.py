#!/usr/bin/env python3
"""Stands in for llama-server: its flags, its paths, its stream; and every way to fail, by FAKE.

Shares no code with memplan. FAKE holds words: what happens to the n-th completion is told as ``word@n``
(1 is the first after the two of the start-up), and ``word`` alone happens to all of them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HELP = "--ctx-size --parallel --load-mode --cache-ram --kv-unified --no-kv-unified --fit --port"
WORDS = os.environ.get("FAKE", "").split()
WARM_UPS = int(os.environ.get("FAKE_WARM_UPS", "2"))
KEY = os.environ.get("FAKE_KEY")
TOKEN_S = float(os.environ.get("FAKE_TOKEN_S", "0.002"))
LOCK = threading.Lock()
STATE = {"completions": 0, "running": 0}


def happens(word: str, number: int) -> bool:
    return word in WORDS or f"{word}@{number}" in WORDS


def is_first_time(name: str) -> bool:
    """Always, where there is no file to remember it in."""
    flag = os.environ.get(name)
    if flag is None:
        return True
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def may(self) -> bool:
        if KEY and self.headers.get("Authorization") != f"Bearer {KEY}":
            self.answer(401, {"error": {"message": "invalid api key"}})
            return False
        return True

    def do_GET(self) -> None:
        if not self.may():
            return
        if self.path == "/health":
            self.answer(200, {"status": "ok"})
        elif self.path == "/slots":
            slots = int(option("--parallel", "2"))
            each = int(option("--ctx-size", "2048")) // slots
            self.answer(200, [{"id": i, "n_ctx": each} for i in range(slots)])
        elif self.path == "/metrics":
            self.answer(200, f"llamacpp:requests_processing {STATE['running']}\n".encode())
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "fake"}]})
        else:
            self.answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.may():
            return
        if self.path not in ("/v1/completions", "/v1/chat/completions"):
            self.answer(404, {"error": "no such path"})
            return
        with LOCK:
            STATE["completions"] += 1
            number = STATE["completions"] - WARM_UPS
            STATE["running"] += 1
        try:
            self.complete(asked, number if number > 0 else -1)
        finally:
            with LOCK:
                STATE["running"] -= 1

    def complete(self, asked: dict, number: int) -> None:
        if happens("broken", number) and number > 0:
            self.answer(500, {"error": {"message": "cannot"}})
        elif happens("busy", number) and number > 0:
            self.answer(429, {"error": {"message": "later"}})
        elif happens("long", number) and number > 0:
            self.answer(
                400, {"error": {"type": "exceed_context_size_error", "message": "too long"}}
            )
        elif happens("html", number) and number > 0:
            self.answer(200, b"<html>hello</html>")
        elif happens("hang_up", number) and number > 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif happens("garbage", number) and number > 0:
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            self.close_connection = True
        else:
            self.stream(asked, number if number > 0 else 0)

    def stream(self, asked: dict, number: int) -> None:
        is_chat = "messages" in asked
        prompt = asked.get("prompt", "")
        read = len(prompt) if isinstance(prompt, list) else max(1, len(str(prompt).split()))
        tokens = asked["max_tokens"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(tokens):
            time.sleep(TOKEN_S)
            if number and index == 1:
                if happens("wedged", number):
                    time.sleep(3600)
                if happens("killed", number) and is_first_time("FAKE_KILLED_ONCE"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if happens("cut", number):
                    self.chunk(b"")
                    return
                if happens("cut_hard", number):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if happens("error", number):
                    self.event({"error": {"code": 500, "message": "it broke"}})
                    self.chunk(b"")
                    return
                if happens("full", number):
                    said = "Context size has been exceeded."
                    self.event({"error": {"code": 500, "message": said}})
                    self.chunk(b"")
                    return
                if happens("short", number):
                    tokens = 1
                    break
                if happens("nonsense", number):
                    self.chunk(b"data: {not json\n\n")
            text = {"delta": {"content": " a"}} if is_chat else {"text": " a"}
            self.event({"choices": [{**text, "index": 0, "finish_reason": None}]})
        made = 1 if number and happens("short", number) else tokens
        if number and happens("liar", number):
            made *= 7
        last = {"delta": {}} if is_chat else {"text": ""}
        said = {"choices": [{**last, "index": 0, "finish_reason": "length"}]}
        if not (number and happens("silent", number)):
            said["usage"] = {"prompt_tokens": read, "completion_tokens": made}
        self.event(said)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, said: dict) -> None:
        self.chunk(f"data: {json.dumps(said)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def option(name: str, otherwise: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else otherwise


def main() -> None:
    if "--help" in sys.argv:
        print(HELP)
        return
    if "--version" in sys.argv:
        print("version: 1 (fake)")
        return
    if "never_starts" in WORDS:
        time.sleep(3600)
    if "fails" in WORDS:
        print("error: failed to load model 'x'", file=sys.stderr)
        raise SystemExit(1)
    if "slow_start" in WORDS:
        time.sleep(1.5)
    if "with_child" in WORDS:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        print(f"child {child.pid}", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_TAKEN_ONCE") and is_first_time("FAKE_TAKEN_ONCE"):
        print("error: couldn't bind HTTP server socket", file=sys.stderr)
        raise SystemExit(1)
    print("CPU KV buffer size = 1.00 MiB\nCPU_Mapped model buffer size = 2.00 MiB", flush=True)
    server = Server(("127.0.0.1", int(option("--port", os.environ.get("FAKE_PORT", "0")))), Handler)
    print(f"listening on {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
