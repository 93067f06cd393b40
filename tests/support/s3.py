"""A real S3 server on this machine, which counts what it sends."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

USER = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Store:
    """A server of buckets; `sent` are the bytes of each answer with content, `asked` the paths."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app, self.url = app, ""
        self.sent: list[int] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
        for block in self.app(environ, start):
            if environ["REQUEST_METHOD"] == "GET":
                self.sent.append(len(block))
            yield block


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """Serves an empty bucket named `bucket`, to whoever reads this process's environment."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    store = Store(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**USER, "AWS_ENDPOINT_URL": store.url}.items():
            patch.setenv(name, value)
        try:
            import s3fs

            s3fs.S3FileSystem().mkdir("bucket")
            yield store
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
