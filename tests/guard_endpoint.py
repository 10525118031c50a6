"""A small OpenAI-compatible server, for tests of the guard model."""

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Reply = tuple[int, bytes]
GZIP = b"\x1f\x8b"


@dataclass
class GuardEndpoint:
    """`reply` makes of a request's body what is answered. `asked` has every request's headers and body."""

    url: str
    reply: Callable[[dict[str, Any]], Reply]
    asked: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    pause_seconds: float | None = None
    """Before each byte of an answer, which is else sent at once."""

    def hang(self, _body: dict[str, Any]) -> Reply:
        """Nothing, as long as the server lives."""
        self.closing.wait(60)
        return complete("safe")


def complete(content: Any) -> Reply:
    """A chat completion with this content."""
    message = {"role": "assistant", "content": content}
    return 200, json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]}).encode()


@contextmanager
def serve_guard(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[GuardEndpoint]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.asked.append((dict(self.headers), body))
            status, content = endpoint.reply(body) if self.path == "/v1/chat/completions" else (404, b"")
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if content.startswith(GZIP):
                    self.send_header("Content-Encoding", "gzip")
                self.end_headers()
                for part in [content] if endpoint.pause_seconds is None else [bytes([byte]) for byte in content]:
                    endpoint.closing.wait(endpoint.pause_seconds or 0)
                    self.wfile.write(part)
            except ConnectionError:
                pass  # It did not wait any longer.

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        endpoint = GuardEndpoint(f"http://127.0.0.1:{server.server_port}/v1", reply)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.closing.set()
            server.shutdown()
            thread.join()
