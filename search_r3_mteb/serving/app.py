"""The HTTP application: its paths, and what each answers."""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from search_r3_mteb.serving.errors import RequestError, failed
from search_r3_mteb.serving.guard import PATHS, Guard
from search_r3_mteb.serving.metrics import Metrics
from search_r3_mteb.serving.protocol import (
    EmbeddingRequest,
    SearchRequest,
    asked,
    complaint,
    shortened,
    usage,
    written,
)
from search_r3_mteb.serving.searching import Searches
from search_r3_mteb.serving.service import Answer, Service
from search_r3_mteb.serving.settings import ServeSettings

PAGE = Path(__file__).parent / "page.html"
_Answered = TypeVar("_Answered")


def application(
    encoder: Any, name: str, settings: ServeSettings, *, key: str | None = None, searches: Searches | None = None
) -> Guard:
    """The ASGI application that serves `encoder` under `name`; `searches` are its indexes."""
    metrics = Metrics()
    service = Service(encoder, settings, metrics)
    indexes = searches or Searches({})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    # Its pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="search-r3", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.service = service
    _answer_errors(app)
    _small_paths(app, service, name, indexes)
    _embeddings(app, service, name)
    _search(app, service, indexes)
    return Guard(app, metrics, key, settings.max_bytes)


def _small_paths(app: FastAPI, service: Service, name: str, indexes: Searches) -> None:
    page, policy = _page()
    started = int(time.time())

    @app.get("/", response_class=HTMLResponse)
    async def _root() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})

    @app.get("/health")
    async def _health() -> JSONResponse:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "the model does not run"}, 200 if alive else 503)

    @app.get("/metrics")
    async def _metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": service.metrics.content_type})

    @app.get("/v1/models")
    async def _models() -> dict[str, Any]:
        names = [name, f"{name}:query", f"{name}:document"]
        models = [{"id": each, "object": "model", "created": started, "owned_by": "search-r3"} for each in names]
        return {"object": "list", "data": models}

    @app.get("/v1/indexes")
    async def _indexes() -> dict[str, Any]:
        listed = await asyncio.to_thread(indexes.listed)  # an index that was changed is read again, and its checksums
        return {"object": "list", "data": listed, "mode": service.encoder.mode}


def _embeddings(app: FastAPI, service: Service, name: str) -> None:
    encoder, settings = service.encoder, service.settings

    @app.post("/v1/embeddings")
    async def _embed(body: EmbeddingRequest, request: Request) -> Response:
        who = asked(body, name, require=settings.require_role)
        if body.dimensions is not None and body.dimensions > encoder.dim:
            raise RequestError(
                400, f"dimensions={body.dimensions}: this model's vectors have {encoder.dim}.", param="dimensions"
            )
        reasons = who.role == "query" and encoder.mode == "reason"
        if body.return_reasoning and not reasons:
            why = "documents are not reasoned about" if who.role == "document" else "this server's mode is 'direct'"
            hint = f" Ask the model {name}:query, or give input_type='query'." if who.role == "document" else ""
            raise RequestError(400, f"return_reasoning: {why}, so there is none to return.{hint}", param="input_type")
        with service.place(len(body.input)):
            answers = await _while_wanted(
                request, settings.timeout, service.answers([*body.input], "reason" if reasons else "direct")
            )
        service.metrics.texts.labels(who.role).inc(len(answers))

        def rendered() -> bytes:
            data = [_item(place, answer, body) for place, answer in enumerate(answers)]
            content = {"object": "list", "data": data, "model": body.model, "role": who.role, "role_from": who.said_by}
            return json.dumps(content | {"usage": _usage(answers)}).encode()

        # In a thread: thousands of vectors take a while to write.
        return Response(await asyncio.to_thread(rendered), media_type="application/json", headers=who.headers())


def _item(place: int, answer: Answer, body: EmbeddingRequest) -> dict[str, Any]:
    vector = written(shortened(answer.vector, body.dimensions), body.encoding_format)
    item: dict[str, Any] = {"object": "embedding", "index": place, "embedding": vector}
    if answer.truncated_tokens:
        item["truncated_tokens"] = answer.truncated_tokens
    if body.return_reasoning and answer.thought is not None:
        item |= {"reasoning": answer.thought.text, "finished": answer.thought.finished}
    return item


def _usage(answers: list[Answer]) -> dict[str, int]:
    return usage([each.prompt_tokens for each in answers], [each.generated_tokens for each in answers])


def _search(app: FastAPI, service: Service, indexes: Searches) -> None:
    settings = service.settings

    @app.post("/v1/search")
    async def _searched(body: SearchRequest, request: Request) -> Response:
        index, mode = indexes.chosen(body.index), body.mode or service.encoder.mode
        if mode == "reason" and service.encoder.mode == "direct":
            raise RequestError(400, "mode='reason': this server's mode is 'direct', it does not reason.", param="mode")
        if body.k > settings.max_hits:
            raise RequestError(400, f"k={body.k}: at most {settings.max_hits} hits are given.", param="k")
        if body.stream and len(body.query) > 1:
            raise RequestError(400, "stream: one question at a time can be watched.", param="stream")

        async def found(on_written: Any = None) -> bytes:
            with _texts_are("query"), service.place(len(body.query)):
                answers = await service.answers(body.query, mode, on_written)
                results = await asyncio.to_thread(indexes.search, index, body.query, answers, body.k)
                service.metrics.texts.labels("query").inc(len(answers))
            content = {"object": "search.results", "index": index, "mode": mode, "results": results}
            return json.dumps(content | {"usage": _usage(answers)}).encode()

        with _texts_are("query"):
            service.check_room(len(body.query))
        if not body.stream:
            answered = await _while_wanted(request, settings.timeout, found())
            return Response(answered, media_type="application/json")
        return StreamingResponse(
            _events(service, found, settings.timeout),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )


@contextmanager
def _texts_are(field: str) -> Iterator[None]:
    """Errors of the service, which knows texts as `input`, name this field of the request."""
    try:
        yield
    except RequestError as error:
        if error.param == "input":
            error.param = field
        raise


async def _events(service: Service, found: Any, timeout: float) -> AsyncIterator[bytes]:
    """Server-sent events: "reasoning" with {"delta"} as it is written, then "result", or "error" in OpenAI's shape.

    Closing the connection cancels this generator, and with it the work.
    """
    ids: asyncio.Queue[list[int] | None] = asyncio.Queue()
    task = asyncio.create_task(found(ids.put_nowait))
    task.add_done_callback(lambda _: ids.put_nowait(None))
    said, deadline = "", time.monotonic() + timeout
    try:
        while (newest := await asyncio.wait_for(ids.get(), deadline - time.monotonic())) is not None:
            text = await service.text_of(newest)
            # The last character may be half of one, and is written with the rest of it.
            if text.startswith(said) and len(text) > len(said) and not text.endswith("\ufffd"):
                yield _event("reasoning", json.dumps({"delta": text[len(said) :]}).encode())
                said = text
        yield _event("result", task.result())
    except RequestError as error:
        yield _event("error", json.dumps(error.body()).encode())
    except TimeoutError:
        yield _event("error", json.dumps(_timed_out(timeout).body()).encode())
    except Exception:
        yield _event("error", json.dumps(failed().body()).encode())
        raise
    finally:
        await _ended(task)


def _event(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


async def _while_wanted(request: Request, timeout: float, work: Coroutine[Any, Any, _Answered]) -> _Answered:
    """What `work` returns. It is dropped when the client goes away or the time is over (RequestError 499, 504)."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise RequestError(499, "The client went away.")
        raise _timed_out(timeout)
    finally:
        await _ended(gone)
        await _ended(task)


def _timed_out(timeout: float) -> RequestError:
    return RequestError(
        504,
        f"This took longer than {timeout:g} seconds and was given up. Send fewer texts at once, or later.",
        code="timeout",
    )


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task that still runs, and wait for its end. What it then raises is nobody's any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, or asyncio would log it with its words


def _answer_errors(app: FastAPI) -> None:
    """Every error as OpenAI's clients read it."""

    def answer(error: RequestError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(RequestError)
    async def _request_error(_: Request, error: RequestError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, param = complaint(error.errors(), SearchRequest if "search" in request.url.path else EmbeddingRequest)
        return answer(RequestError(400, message, param=param))

    @app.exception_handler(Exception)
    async def _fault(_: Request, __: Exception) -> JSONResponse:
        return answer(failed())  # and the guard logs it

    @app.exception_handler(400)
    async def _unreadable(_: Request, __: Exception) -> JSONResponse:
        return answer(RequestError(400, "The body cannot be read as JSON."))

    @app.exception_handler(404)
    async def _absent(_: Request, __: Exception) -> JSONResponse:
        return answer(RequestError(404, f"There is no such path here. The paths are {', '.join(PATHS)}."))

    @app.exception_handler(405)
    async def _method(_: Request, __: Exception) -> JSONResponse:
        return answer(RequestError(405, "This path does not take this method: POST for embeddings and search, or GET."))


def _page() -> tuple[str, str]:
    """The page, and the policy that lets only its own script and style run, and only this server be asked."""
    page = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for kind in ("script", "style"):
        [content] = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digest = hashlib.sha256(content.encode()).digest()
        hashes[kind] = f"{kind}-src 'sha256-{base64.b64encode(digest).decode('ascii')}'"
    parts = ["default-src 'none'", "connect-src 'self'", "img-src data:", hashes["script"], hashes["style"]]
    return page, "; ".join([*parts, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])
