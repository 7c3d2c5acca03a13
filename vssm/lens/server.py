"""The server of `vssm lens`: one page and a few questions in JSON, on the loopback only."""

import asyncio
import base64
import hashlib
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vssm._words import nearest
from vssm.analysis.matrices import WEIGHTS
from vssm.lens.checkpoints import Checkpoints
from vssm.lens.images import MAX_BYTES, MAX_PIXELS, Images, bundled
from vssm.lens.looks import Looks
from vssm.lens.networks import RANDOM_SIZE, SIZES, Networks
from vssm.lens.refused import Refused
from vssm.lens.requests import Ask
from vssm.models import list_models

__all__ = ["HOST", "create_app", "listen", "serve"]

HOST = "127.0.0.1"
HOSTS = (HOST, "localhost")
DEFAULT_MODEL = "vmamba_tiny"
MAX_QUESTION = 16 << 10  # bytes of JSON
PAGE = Path(__file__).parent / "page.html"


def create_app(
    checkpoints: Path | None = None,
    models: Sequence[str] | None = None,
    samples: dict[str, Path] | None = None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> Starlette:
    """The application.

    Args:
        checkpoints: the folder whose checkpoints and runs the page may choose; None for random weights only.
        models: names the page may choose; None for all of ours.
        samples: photographs by name; None for those of installed packages.
        max_bytes, max_pixels: of an upload.

    Raises ValueError for a model that is not ours, NotADirectoryError for a folder that is not there.
    """
    known = list_models()
    chosen = list(dict.fromkeys(models)) if models else known
    for name in chosen:
        if name not in known:
            raise ValueError(f"unknown model {name!r}{nearest(name, known)} (`vssm models` lists all)")
    images = Images(bundled() if samples is None else samples, max_bytes, max_pixels)
    looks = Looks(images, Networks(chosen, Checkpoints(checkpoints)))
    page = PAGE.read_bytes()

    async def show(_request: Request) -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    async def choices(_request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_choices, looks))

    async def upload(request: Request) -> Response:
        content = await _body(request, max_bytes, images.check_bytes)
        return JSONResponse(await run_in_threadpool(looks.add, content))

    routes = [Route("/", show), Route("/api/choices", choices), Route("/api/images", upload, methods=["POST"])]
    turn = asyncio.Lock()
    for path, answer in _answers(looks).items():
        endpoint = _question(answer, turn if path in ("rows", "field") else None, always=path == "field")
        routes.append(Route(f"/api/{path}", endpoint, methods=["POST"]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(OnlyFromHere, headers=_headers(page.decode()))],
        exception_handlers={Refused: _refused, HTTPException: _no_such_address, Exception: _failed},
    )


def _choices(looks: Looks) -> dict[str, Any]:
    models, checkpoints = looks.networks.models, looks.networks.checkpoints.names()
    return {
        "models": models,
        "model": DEFAULT_MODEL if DEFAULT_MODEL in models else models[0],
        "checkpoints": checkpoints,
        "images": list(looks.images.samples),
        "weights": WEIGHTS,
        "sizes": SIZES,
        "size": RANDOM_SIZE,
        "max_bytes": looks.images.max_bytes,
    }


def _answers(looks: Looks) -> dict[str, Callable[[Ask], Any]]:
    """Address -> what answers a question: a JSON object, or bytes."""
    return {
        "open": lambda ask: looks.opened(ask.image, ask.choice),
        "block": lambda ask: looks.block(ask.image, ask.choice, ask.block, ask.number("channel")),
        "click": lambda ask: looks.click(
            ask.image, ask.choice, ask.block, ask.query, ask.weights, ask.number("channel")
        ),
        "rows": lambda ask: looks.rows(
            ask.image,
            ask.choice,
            ask.block,
            ask.query if ask.has_query else None,
            ask.weights,
            ask.number("channel"),
            ask.number("route"),
        ),
        "field": lambda ask: looks.field(ask.image, ask.choice, ask.block, ask.query),
    }


def _question(
    answer: Callable[[Ask], Any], turn: asyncio.Lock | None = None, always: bool = True
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint. With `turn`, only one of those that share it runs at a time, so that a click finds the processor
    free; unless `always`, a question about one patch does not wait for it."""

    async def endpoint(request: Request) -> Response:
        ask = Ask.of(await _body(request, MAX_QUESTION))
        if turn is None or (ask.has_query and not always):
            found = await run_in_threadpool(answer, ask)
        else:
            async with turn:
                if await request.is_disconnected():  # the page has asked for something else meanwhile
                    return Response(status_code=499)
                found = await run_in_threadpool(answer, ask)
        if isinstance(found, bytes):
            return Response(found, media_type="application/octet-stream")
        return JSONResponse(found)

    return endpoint


async def _body(request: Request, most: int, check: Callable[[int], None] | None = None) -> bytes:
    """The body, read no further than `most` bytes."""
    check = check or _check_question
    content = bytearray()
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        check(int(declared))
    async for chunk in request.stream():
        content += chunk
        check(len(content))
    assert len(content) <= most
    return bytes(content)


def _check_question(count: int) -> None:
    if count > MAX_QUESTION:
        raise Refused(f"the request is larger than {MAX_QUESTION} bytes", 413)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status)


async def _no_such_address(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _failed(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "this is a fault of vssm lens; the terminal where it runs shows more"}, 500)


class OnlyFromHere:
    """Refuses what another web page could make the browser send: requests under another name of this machine (DNS
    rebinding), and questions of another origin. Adds the headers that keep the page from loading anything else."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]):
        self.app = app
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        refusal = _refusal(scope)
        app = self.app if refusal is None else JSONResponse({"error": refusal}, 403)
        await app(scope, receive, with_headers)


def _refusal(scope: Scope) -> str | None:
    sent: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        sent.setdefault(name.lower(), []).append(value.decode("latin-1"))
    host = sent.get(b"host", [""])
    if len(host) != 1 or re.sub(r":\d+$", "", host[0]) not in HOSTS:
        return f"this server answers to {HOST} only; open the address that the terminal shows"
    if scope["method"] not in ("GET", "HEAD") and sent.get(b"origin") != [f"http://{host[0]}"]:
        return "only the page of this server may ask"
    return None


def _headers(page: str) -> dict[str, str]:
    """The page's own script and style, by their hashes, and nothing else runs or is loaded."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(x.encode()).digest()).decode()}'" for x in found)

    policy = {
        "default-src": "'none'",
        "script-src": hashes("script"),
        "style-src": hashes("style"),
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }


def listen(port: int) -> socket.socket:
    """A socket on the loopback; port 0 for any that is free. OSError that says what to do when it is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        raise OSError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
    found.listen()
    return found


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answers until Ctrl-C. Nothing is logged but faults."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, date_header=False)
    uvicorn.Server(config).run(sockets=[listener])
