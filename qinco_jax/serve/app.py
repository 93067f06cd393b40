"""The HTTP service of an index: POST /search, GET /health, GET /metrics."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qinco_jax.errors import InputError
from qinco_jax.search.searcher import QUERY_BLOCK, Searcher
from qinco_jax.serve import requests
from qinco_jax.serve.batches import WAIT_MS, Batches
from qinco_jax.serve.loading import warm_up
from qinco_jax.serve.metrics import CONTENT_TYPE, Metrics
from qinco_jax.serve.requests import Incomplete, Limits, Refused

RETRY_SECONDS = 1
MISSING = "qinco-missing"  # a header: the shards that an answer lacks

logger = logging.getLogger("uvicorn.error")


def application(
    index: Searcher,
    limits: Limits = Limits(),
    *,
    wait_ms: float = WAIT_MS,
    block_rows: int = QUERY_BLOCK,
) -> Starlette:
    """An ASGI application that searches an index; it starts with searches that compile everything.

    Args:
      index: with at least one vector.
      limits: of requests and of the queue.
      wait_ms: for how long a request waits at most for others to be searched with.
      block_rows: vectors that are searched at once; 1 means each request by itself.

    Raises:
      InputError: the index has no vectors.
    """
    if len(index) == 0:
        raise InputError("the index has no vectors; add some and save it again")
    service = Service(index, limits, wait_ms, block_rows)
    return Starlette(
        routes=[
            Route("/search", service.search, methods=["POST"]),
            Route("/health", service.health),
            Route("/metrics", service.numbers),
        ],
        exception_handlers={HTTPException: _no_such_place},
        lifespan=service.lifespan,
    )


class Service:
    """Answers the requests of an application."""

    def __init__(self, index: Searcher, limits: Limits, wait_ms: float, block_rows: int) -> None:
        self.index, self.limits = index, limits
        self.metrics = Metrics(lambda: self.batches.queue_rows)
        self.batches = Batches(index, limits.max_queue, wait_ms, block_rows, self.metrics.searched)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Warms up before the first request and searches until the last one."""
        await asyncio.to_thread(warm_up, self.index)
        task = asyncio.create_task(self.batches.run())
        yield
        task.cancel()
        self.batches.thread.shutdown()

    async def search(self, request: Request) -> Response:
        """POST /search."""
        begin = time.perf_counter()
        response = await self._answered(request)
        self.metrics.answered(response.status_code, time.perf_counter() - begin)
        return response

    async def health(self, request: Request) -> Response:
        """GET /health: what is searched; whoever gets an answer finds everything warm."""
        return JSONResponse({
            "status": "ready",
            "vectors": len(self.index),
            "dim": self.index.model.dim,
            "metric": self.index.metric,
            **({"missing": self.index.missing} if isinstance(self.index, Incomplete) else {}),
        })  # fmt: skip

    async def numbers(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _answered(self, request: Request) -> Response:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            body = await self._body(request)
            x, settings = requests.parse(
                body, media_type, request.query_params, self.index, self.limits
            )
            found = await self.batches.search(x, settings)
            headers = {MISSING: ",".join(found[2])} if found[2] else None
            answer = requests.answer(*found, media_type)
            return Response(answer, media_type=media_type, headers=headers)
        except InputError as error:
            return _refusal(400, str(error))
        except Refused as error:
            return _refusal(error.status, str(error))
        except ClientDisconnect:
            return _refusal(400, "the connection was closed before the body's end")
        except Exception:
            logger.exception("a search failed")
            return _refusal(500, "the search failed; the server's log says why")

    async def _body(self, request: Request) -> bytes:
        """The body; what is over the limit is not kept."""
        told = request.headers.get("content-length", "0")
        body = bytearray()
        if int(told) <= self.limits.max_bytes:
            async for part in request.stream():
                body += part
                if len(body) > self.limits.max_bytes:
                    break
            else:
                return bytes(body)
        raise Refused(
            413,
            f"the body has more than {self.limits.max_bytes} bytes; send several requests, or "
            f"float32 rows as {requests.BINARY}",
        )


async def _no_such_place(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = (
        f"there is no {request.method} {request.url.path}; use POST /search, GET /health or "
        "GET /metrics"
    )
    return JSONResponse({"error": text}, error.status_code, error.headers)


def _refusal(status: int, text: str) -> Response:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse({"error": text}, status, headers)
