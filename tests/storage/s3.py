"""A real S3 server for tests, and a proxy before it that can be told to fail.

with s3_store() as (url, storage_options): ...           # a fresh bucket
with faulty_s3_store() as (url, storage_options, proxy):  # the same, through a proxy
    proxy.fail("busy", times=2, method="PUT")
"""

import atexit
import contextlib
import functools
import http.client
import http.server
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer

_FAILURES = {
    "busy": (503, "SlowDown", "Please reduce your request rate."),
    "internal": (500, "InternalError", "We encountered an internal error. Please try again."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "echo": (503, "ServiceUnavailable", "repeats {Authorization} {X-Amz-Security-Token} http://me:a-password@proxy"),
    "full": (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server of its own; yields its endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@functools.cache
def shared_endpoint() -> str:
    """The server that all stores of this process share; it ends with the process."""
    servers = contextlib.ExitStack()
    atexit.register(servers.close)  # later its thread is gone, and would be waited for without end
    return servers.enter_context(s3_server())


def storage_options(endpoint: str, **config: Any) -> dict[str, Any]:
    """What fsspec needs to reach a server; ``config`` is for botocore, such as ``read_timeout``."""
    return {
        "key": "an-access-key",
        "secret": "a-secret-key",
        "endpoint_url": endpoint,
        "config_kwargs": config,
    }


def s3_files(endpoint: str) -> s3fs.S3FileSystem:
    """The server's files as s3fs sees them, past what is tested."""
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, **storage_options(endpoint))


@contextlib.contextmanager
def s3_store(endpoint: str | None = None, **config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A fresh bucket, by default on the shared server; yields its URL and the storage_options."""
    endpoint = endpoint or shared_endpoint()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    # Several times faster than by s3fs.
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")).close()
    yield f"s3://{bucket}", storage_options(endpoint, **config)


@contextlib.contextmanager
def faulty_s3_store(**config: Any) -> Iterator[tuple[str, dict[str, Any], "FaultyProxy"]]:
    """A fresh bucket behind a proxy; yields its URL, the storage_options, and the proxy."""
    with s3_store() as (url, options), faulty_proxy(options["endpoint_url"]) as proxy:
        yield url, storage_options(proxy.endpoint, **config), proxy


class FaultyProxy:
    """Hands requests on to a server, or fails them as it is told.

    Attributes:
        endpoint: Where it listens.
        requests: What came, as ``METHOD /path?query``, in order.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.requests: list[str] = []
        self.stopping = threading.Event()
        self._failures: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, how: str, *, times: int, method: str = "", having: str = "") -> None:
        """Fail the next requests of a method that have a text in their path or query.

        Args:
            how: ``busy``, ``internal``, ``denied``, ``full``, ``echo`` (busy, and tells who asked), ``hang`` (never
                answers), ``drop`` (closes the connection in the middle of the request) or ``cut`` (loses the second
                half of its body).
            times: how many of them.
            method: such as ``PUT``; default all.
            having: a part of the path or query; default any.
        """
        with self._lock:
            self._failures += [(how, method, having)] * times

    def count(self, method: str, having: str = "") -> int:
        """How many requests of a method came that have a text in their path or query."""
        return sum(line.startswith(method + " ") and having in line for line in self.requests)

    def take(self, method: str, path: str) -> str | None:
        """Note a request, and tell how it fails, if it does."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            for index, (how, failing, having) in enumerate(self._failures):
                if failing in {"", method} and having in path:
                    del self._failures[index]
                    return how
        return None

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """A proxy before a server."""
    proxy = FaultyProxy(target)
    thread = threading.Thread(target=proxy.run, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: FaultyProxy, *args: Any) -> None:
        self.proxy = proxy
        super().__init__(*args)

    def handle_any(self) -> None:
        how = self.proxy.take(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if how == "hang":
            self.proxy.stopping.wait()
            self.close_connection = True
            return
        if how == "drop":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if how in {None, "cut"}:
            self._hand_on(body if how is None else body[: length // 2])
        else:
            status, code, message = _FAILURES[how]
            if how == "echo":
                message = message.format_map(self.headers)
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, text.encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _hand_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.proxy.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        with contextlib.closing(connection), connection.getresponse() as response:
            answer = {k: v for k, v in response.getheaders() if k.lower() not in {"connection", "transfer-encoding"}}
            self._answer(response.status, answer, response.read())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        # The answer to HEAD tells the length of what it leaves out.
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has lost its patience
            self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""
