"""A proxy between this package and a Tiled server that can break in the ways of servers and networks."""

import threading
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PASSED_ON = ("content-type", "content-encoding", "etag", "location")


class Valve:
    """Passes HTTP on to a server, unless told otherwise.

    ``verdict(method, path, body)`` is asked for each request: "pass", "error" (answer 500 instead), "lose"
    (pass it on, answer 500 all the same), or "hang" (say nothing until the valve is shut).
    """

    def __init__(self, uri: str) -> None:
        self.verdict: Callable[[str, str, bytes], str] = lambda *_: "pass"
        self.writes = 0
        self._upstream = httpx.Client(base_url=uri, trust_env=False, timeout=60)
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._release = threading.Event()
        self.open()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Listen, always on the same port."""
        valve = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = 65536

            def handle_any(self) -> None:
                valve._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._release.clear()
        self._server = Server(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def shut(self) -> None:
        """Refuse connections, as when the server is down."""
        self._release.set()
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def close(self) -> None:
        self.shut()
        self._upstream.close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        write = request.command not in ("GET", "HEAD")
        self.writes += write
        verdict = "drop" if self._server is None else self.verdict(request.command, request.path, body)
        if verdict == "hang":
            self._release.wait(60)
        if verdict in ("drop", "hang"):
            request.close_connection = True
            return
        answer = None
        if verdict in ("pass", "lose"):
            headers = {k: v for k, v in request.headers.items() if k.lower() != "connection"}
            sent = self._upstream.build_request(request.command, request.path, headers=headers, content=body)
            with closing(self._upstream.send(sent, stream=True)) as answer:
                content = b"".join(answer.iter_raw())
        if verdict != "pass" or answer is None:
            request.send_response(500)
            request.send_header("content-length", "0")
            request.end_headers()
            return
        request.send_response(answer.status_code)
        for name in PASSED_ON:
            if name in answer.headers:
                request.send_header(name, answer.headers[name])
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
