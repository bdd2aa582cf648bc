"""An HTTP proxy that counts what is asked for, and spoils answers as it is told."""

import http.client
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyProxy:
    """Stands before a server on 127.0.0.1. Faults befall the next GETs of shards, one each, in the order of `faults`:

    status   an answer with that number, such as "500"
    cut      the connection is closed without an answer
    truncated   half of the body, then the connection is closed
    short    half of the body, as if it were all
    wrong    a byte of the body is another
    slow     the body in small parts, with time between
    stalled  half of the body, then nothing until `release`
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.forget()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def forget(self) -> None:
        """As it was in the beginning."""
        self.faults: deque[str] = deque()
        self.always: str | None = None
        self.shards: list[str] = []
        """The name of the file of every GET of a shard, in order."""
        self.asked = threading.Semaphore(0)
        """Released for each of those."""
        self.release = threading.Event()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def fault(self, name: str) -> str | None:
        self.shards.append(name)
        self.asked.release()
        return self.faults.popleft() if self.faults else self.always


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        name = self.path.rpartition("/")[2].partition("?")[0]
        fault = self.proxy.fault(name) if self.command == "GET" and name.endswith(".arrow") else None
        self.answer(answer, content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

    def answer(self, answer: http.client.HTTPResponse, content: bytes, fault: str | None) -> None:
        self.close_connection = fault is not None
        if fault == "cut":
            return
        half = content[: len(content) // 2]
        if fault == "wrong":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "short":
            content = half
        if fault is not None and fault.isdigit():
            content = b""
        self.send_response(int(fault) if fault and fault.isdigit() else answer.status)
        for key, value in answer.getheaders():
            if key.lower() in ("content-type", "content-range", "accept-ranges", "etag", "last-modified"):
                self.send_header(key, value)  # and no checksum: many servers send none, and a client might look at it
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault in ("truncated", "stalled"):
            self.wfile.write(half)
            self.wfile.flush()
            if fault == "stalled":
                self.proxy.release.wait()
        elif fault == "slow":
            for start in range(0, len(content), 200):
                self.wfile.write(content[start : start + 200])
                self.wfile.flush()
                self.proxy.release.wait(0.02)
        else:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
