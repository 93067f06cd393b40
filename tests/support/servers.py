"""Servers on this machine that fail as they are told: HTTP, a proxy for it, and FTP."""

import contextlib
import gzip
import http.client
import re
import select
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Fault(NamedTuple):
    """What goes wrong with one answer; the next request gets the next fault."""

    status: int | None = None  # with an empty body
    headers: dict[str, str] | None = (
        None  # besides, or instead of, the usual ones; "" takes one away
    )
    drop: int | None = None  # after so many bytes of the body
    reset: bool = False  # drops with a reset instead of an orderly end
    silent: int | None = None  # after so many bytes of the body
    trickle: float = 0.0  # seconds between pieces of 1000 bytes
    ranges: bool = True
    body: bytes | None = None  # instead of the file
    hangs_up: bool = False  # before any answer


class Asked(NamedTuple):
    """A request, and the bytes of a file that it was sent."""

    method: str
    path: str
    headers: http.client.HTTPMessage
    sent: list[int]

    @property
    def range(self) -> str | None:
        return self.headers["Range"]


class Server(ThreadingHTTPServer):
    """Serves `files` by path, with `faults` in turn and then none."""

    daemon_threads = False  # so that closing waits for the last answer

    def __init__(self, **files: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {f"/{name}": body for name, body in files.items()}
        self.etag: str | None = '"1"'
        self.modified: str | None = None
        self.always = Fault()  # where `faults` has no more
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self.scheme = "http"

    def at(self, name: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/{name}"

    def ranges(self) -> list[str | None]:
        return [asked.range for asked in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the other side has gone: what the tests are about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # for a client that has forgotten its connection
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        server = self.server
        fault = server.faults.pop(0) if server.faults else server.always
        asked = Asked(self.command, self.path, self.headers, [])
        server.asked.append(asked)
        whole = server.files.get(self.path) if fault.body is None else fault.body
        if fault.hangs_up:
            self.close_connection = True
        elif fault.status is not None or whole is None:
            self._head(fault.status or 404, {"Content-Length": "0"}, fault)
        else:
            self._send(whole, fault, asked)

    def _send(self, whole: bytes, fault: Fault, asked: Asked) -> None:
        headers = {"ETag": self.server.etag or "", "Last-Modified": self.server.modified or ""}
        if self.command == "GET" and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            whole = gzip.compress(whole)
        status, body = 200, whole
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, self.server.etag, self.server.modified)
        if found and fault.ranges and same:
            begin, end = int(found[1]), min(int(found[2] or len(whole)) + 1, len(whole))
            if begin >= len(whole):
                self._head(416, {"Content-Length": "0"}, fault)
                return
            status, body = 206, whole[begin:end]
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(whole)}"
        self._head(status, headers | {"Content-Length": str(len(body))}, fault)
        if self.command == "GET":
            self._body(body, fault, asked)

    def _head(self, status: int, headers: dict[str, str], fault: Fault) -> None:
        self.send_response(status)
        self.close_connection = True  # no client keeps one open and the server waiting
        for name, value in ({"Connection": "close"} | headers | (fault.headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes, fault: Fault, asked: Asked) -> None:
        stop = min(len(body), *(n for n in (fault.drop, fault.silent, len(body)) if n is not None))
        chunked = "chunked" in (fault.headers or {}).get("Transfer-Encoding", "")
        step = 1000 if fault.trickle else 2**16
        for begin in range(0, stop, step):
            piece = body[begin : min(begin + step, stop)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            asked.sent.append(len(piece))
            if fault.trickle:
                time.sleep(fault.trickle)
        if chunked and stop == len(body):
            self.wfile.write(b"0\r\n\r\n")
        if fault.silent is not None:
            self.server.closing.wait(20)
        if fault.reset:
            time.sleep(0.05)  # a reset overtakes what is still to be read
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@contextlib.contextmanager
def serving(**files: bytes) -> Iterator[Server]:
    with Server(**files) as server, _running(server):
        yield server


@contextlib.contextmanager
def serving_tls(certificate: Path, **files: bytes) -> Iterator[Server]:
    """As `serving`, with https; the certificate's file holds its key too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(**files) as server:
        server.scheme = "https"
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with _running(server):
            yield server


class Proxy(ThreadingHTTPServer):
    """A forward proxy; `seen` are the addresses and the hosts that it was asked for."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.seen: list[str] = []
        self.refuses = False
        self.closing = threading.Event()

    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        if self.server.refuses:
            self.send_error(403)
            return
        place = urlsplit(self.path)
        onward = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
        with contextlib.closing(onward):
            onward.request("GET", place.path, headers=dict(self.headers))
            answer = onward.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            while block := answer.read(2**16):
                self.wfile.write(block)

    def do_CONNECT(self) -> None:
        self.server.seen.append(self.path)
        if self.server.refuses:
            self.send_error(403)
            return
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as onward:
            self.send_response(200)
            self.end_headers()
            sides = {self.connection: onward, onward: self.connection}
            while not self.server.closing.is_set():
                for side in select.select(list(sides), [], [], 0.1)[0]:
                    block = side.recv(2**16)
                    if not block:
                        return
                    sides[side].sendall(block)


@contextlib.contextmanager
def proxying() -> Iterator[Proxy]:
    with Proxy() as proxy, _running(proxy):
        yield proxy


@contextlib.contextmanager
def _running(server: Server | Proxy) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()


class Ftp(NamedTuple):
    """An FTP server of a folder; `drops` are bytes after which transfers break, in turn."""

    port: int
    drops: list[int]
    commands: list[str]
    without: set[str]  # commands that it does not know

    def at(self, name: str) -> str:
        return f"ftp://127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def serving_ftp(folder: Path) -> Iterator[Ftp]:
    with warnings.catch_warnings():  # it is built on a module that Python gave up
        warnings.simplefilter("ignore", DeprecationWarning)
        from pyftpdlib.authorizers import DummyAuthorizer
        from pyftpdlib.handlers import DTPHandler, FTPHandler
        from pyftpdlib.ioloop import IOLoop
        from pyftpdlib.servers import FTPServer

    class Data(DTPHandler):
        ac_out_buffer_size = 1000
        left: int | None = None

        def send(self, block: bytes) -> int:
            if self.left is None:
                self.left = ftp.drops.pop(0) if ftp.drops else 10**9
            if self.left == 0:
                self.close()
                self.cmd_channel.close()
                return 0
            sent = super().send(block[: self.left])
            self.left -= sent
            return sent

    class Control(FTPHandler):
        dtp_handler = Data
        use_sendfile = False
        auth_failed_timeout = 0.01
        authorizer = DummyAuthorizer()

        def pre_process_command(self, line: str, command: str, argument: str) -> None:
            ftp.commands.append(line)
            if command in ftp.without:
                self.respond("502 Command not implemented.")
            else:
                super().pre_process_command(line, command, argument)

        def log(self, *args: Any, **kwargs: Any) -> None:
            pass

    Control.authorizer.add_anonymous(str(folder))
    loop = IOLoop()
    server = FTPServer(("127.0.0.1", 0), Control, ioloop=loop)
    ftp = Ftp(server.address[1], [], [], set())
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            loop.loop(timeout=0.02, blocking=False)
        server.close_all()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield ftp
    finally:
        closing.set()
        thread.join()
