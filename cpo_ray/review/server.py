"""The page for one reviewer, served on this machine.

Only somebody with the page's address can see the pictures or judge in the reviewer's name. Other users of the machine lack the
token. Requests from other sites in the reviewer's browser carry another host, another origin or no cookie.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import io
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from PIL import Image
from pydantic import Field, ValidationError

from cpo_ray.config.review import is_loopback
from cpo_ray.config.section import Section
from cpo_ray.core.files import DiskFullError
from cpo_ray.data.picture import PictureError, decode
from cpo_ray.reports.page import STYLE
from cpo_ray.review.judgements import ReviewError, Verdict
from cpo_ray.review.pile import Pile

#: Longest side in pixels of a picture as it is sent, large enough to look closely.
SIDE = 2048
#: Pictures up to this side are sent without loss.
SMALL = 512
MOST_BYTES = 256 * 1024

_HERE = Path(__file__).parent
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Verdicts(Section):
    """What the page sends: verdicts on labels (signed ids) of the picture that it shows."""

    sample: str
    verdicts: dict[str, Verdict] = Field(min_length=1)


def serve(pile: Pile, host: str, port: int) -> None:
    """Print the page's address and serve it until the process is interrupted. Raises ReviewError if the port is taken."""
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(pile, host, port))


async def _serve(pile: Pile, host: str, port: int) -> None:
    token = secrets.token_urlsafe(24)
    runner = web.AppRunner(application(pile, host, token), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{runner.addresses[0][1]}/?token={token}", flush=True)
        await asyncio.Event().wait()
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise ReviewError(f"port {port} of {host} {why}; give another, such as review.port={port + 1}") from None
    finally:
        await runner.cleanup()


def application(pile: Pile, host: str, token: str) -> web.Application:
    """Return the web application. `host` is the name that it may be reached by, `token` the secret at the end of its address."""
    page = _Page(pile, host, token)
    app = web.Application(middlewares=[page.guard], client_max_size=MOST_BYTES)
    app.router.add_get("/", page.shell)
    app.router.add_get("/page.css", page.style)
    app.router.add_get("/page.js", page.script)
    app.router.add_get("/review", page.overview)
    app.router.add_get(r"/pictures/{number:\d{1,9}}", page.picture)
    app.router.add_get(r"/pictures/{number:\d{1,9}}/image", page.image)
    app.router.add_post(r"/pictures/{number:\d{1,9}}", page.judge)
    return app


class _Page:
    def __init__(self, pile: Pile, host: str, token: str) -> None:
        self._pile, self._token = pile, token
        # All ports of a host share cookies, so each review names its cookie differently.
        self._session = hashlib.sha256(token.encode()).hexdigest()[:12]
        self._cookie = f"review-{self._session}"
        # The port may differ: an expert at another desk comes through a tunnel with its own port.
        self._hosts = {host.lower(), "localhost", "127.0.0.1", "::1"} if is_loopback(host) else {host.lower()}

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check every request, and turn every error into a sentence."""
        try:
            self._check(request)
            response = await handler(request)
        except web.HTTPException as error:
            response = web.json_response({"error": error.text}, status=error.status)
        except ReviewError as error:
            response = web.json_response({"error": str(error)}, status=404 if request.method == "GET" else 409)
        response.headers.update({name: value for name, value in _HEADERS.items() if name not in response.headers})
        return response

    async def shell(self, request: web.Request) -> web.Response:
        response = _text("page.html", "text/html")
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="Strict")
        return response

    async def style(self, request: web.Request) -> web.Response:
        return web.Response(
            text=STYLE.read_text(encoding="utf-8") + (_HERE / "page.css").read_text(encoding="utf-8"), content_type="text/css"
        )

    async def script(self, request: web.Request) -> web.Response:
        return _text("page.js", "text/javascript")

    async def overview(self, request: web.Request) -> web.Response:
        return web.json_response({**self._pile.overview(), "session": self._session})

    async def picture(self, request: web.Request) -> web.Response:
        return web.json_response(self._pile.picture(_number(request)))

    async def image(self, request: web.Request) -> web.Response:
        data = self._pile.image(_number(request))
        try:
            body, kind = await asyncio.to_thread(shown, data)
        except PictureError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from None
        # The browser may cache the picture for this session, since the page fetches the next one ahead.
        return web.Response(body=body, content_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    async def judge(self, request: web.Request) -> web.Response:
        try:
            sent = Verdicts.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=f"these are not verdicts: {error.errors()[0]['msg']}") from None
        try:
            # Writing on the event loop keeps two writes from interleaving.
            finished = self._pile.judge(_number(request), sent.sample, sent.verdicts)
        except (OSError, DiskFullError) as error:
            raise web.HTTPInsufficientStorage(text=f"the judgement could not be written: {error}") from None
        return web.json_response({"finished": finished})

    def _check(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        if _hostname(host) not in self._hosts:
            raise web.HTTPMisdirectedRequest(text=f"this page is not served as {host!r}")
        given = request.cookies.get(self._cookie, "")
        if request.path == "/":
            given = request.query.get("token", given)
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPForbidden(text="open the address that the terminal shows where the review was started, with its token")
        if request.method != "GET":
            origin = request.headers.get("Origin", "")
            if origin.partition("://")[2].lower() != host.lower():
                raise web.HTTPForbidden(text=f"judgements are not taken from pages of {origin or 'nowhere'}")
            if request.content_type != "application/json":
                raise web.HTTPUnsupportedMediaType(text="judgements are sent as application/json")


def shown(data: bytes) -> tuple[bytes, str]:
    """Return a picture for the page, upright and encoded anew, and its media type. Raises PictureError."""
    picture = decode(data)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    if max(picture.size) <= SMALL:
        picture.save(stream, "PNG")
        return stream.getvalue(), "image/png"
    picture.save(stream, "JPEG", quality=92)
    return stream.getvalue(), "image/jpeg"


def _hostname(host: str) -> str | None:
    """Return the host without its port; None for a text that is not a host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _number(request: web.Request) -> int:
    return int(request.match_info["number"])


def _text(name: str, kind: str) -> web.Response:
    return web.Response(text=(_HERE / name).read_text(encoding="utf-8"), content_type=kind)
