"""The page for one reviewer, served on this machine. `cpo_ray.reports.guard` says who may see it and judge."""

from __future__ import annotations

import asyncio
import io
from contextlib import suppress
from pathlib import Path

from aiohttp import web
from PIL import Image
from pydantic import Field, ValidationError

from cpo_ray.config.section import Section
from cpo_ray.core.files import DiskFullError
from cpo_ray.data.picture import PictureError, decode
from cpo_ray.reports import guard
from cpo_ray.reports.page import STYLE
from cpo_ray.review.judgements import ReviewError, Verdict
from cpo_ray.review.pile import Pile

#: Longest side in pixels of a picture as it is sent, large enough to look closely.
SIDE = 2048
#: Pictures up to this side are sent without loss.
SMALL = 512

_HERE = Path(__file__).parent


class Verdicts(Section):
    """What the page sends: verdicts on labels (signed ids) of the picture that it shows."""

    sample: str
    verdicts: dict[str, Verdict] = Field(min_length=1)


def serve(pile: Pile, host: str, port: int) -> None:
    """Print the page's address and serve it until the process is interrupted. Raises guard.Unserved if the port is taken."""
    with suppress(KeyboardInterrupt):
        asyncio.run(guard.serve(lambda token: application(pile, host, token), host, port, "review.port"))


def application(pile: Pile, host: str, token: str) -> web.Application:
    """Return the web application. `host` is the name that it may be reached by, `token` the secret at the end of its address."""
    page = _Page(pile)
    return guard.Guard(host, token, ("/", "/page.css", "/page.js")).application(
        web.get("/", page.shell),
        web.get("/page.css", page.style),
        web.get("/page.js", page.script),
        web.get("/review", page.overview),
        web.get(r"/pictures/{number:\d{1,9}}", page.picture),
        web.get(r"/pictures/{number:\d{1,9}}/image", page.image),
        web.post(r"/pictures/{number:\d{1,9}}", page.judge),
    )


class _Page:
    def __init__(self, pile: Pile) -> None:
        self._pile = pile

    async def shell(self, request: web.Request) -> web.Response:
        return _text("page.html", "text/html")

    async def style(self, request: web.Request) -> web.Response:
        return web.Response(
            text=STYLE.read_text(encoding="utf-8") + (_HERE / "page.css").read_text(encoding="utf-8"), content_type="text/css"
        )

    async def script(self, request: web.Request) -> web.Response:
        return _text("page.js", "text/javascript")

    async def overview(self, request: web.Request) -> web.Response:
        return web.json_response(self._pile.overview())

    async def picture(self, request: web.Request) -> web.Response:
        try:
            return web.json_response(self._pile.picture(_number(request)))
        except ReviewError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def image(self, request: web.Request) -> web.Response:
        try:
            data = self._pile.image(_number(request))
            body, kind = await asyncio.to_thread(shown, data)
        except ReviewError as error:
            raise web.HTTPNotFound(text=str(error)) from None
        except PictureError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from None
        return web.Response(body=body, content_type=kind)

    async def judge(self, request: web.Request) -> web.Response:
        try:
            sent = Verdicts.model_validate_json(await request.read())
        except ValidationError as error:
            raise web.HTTPBadRequest(text=f"these are not verdicts: {error.errors()[0]['msg']}") from None
        try:
            # Writing on the event loop keeps two writes from interleaving.
            finished = self._pile.judge(_number(request), sent.sample, sent.verdicts)
        except ReviewError as error:
            raise web.HTTPConflict(text=str(error)) from None
        except (OSError, DiskFullError) as error:
            raise web.HTTPInsufficientStorage(text=f"the judgement could not be written: {error}") from None
        return web.json_response({"finished": finished})


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


def _number(request: web.Request) -> int:
    return int(request.match_info["number"])


def _text(name: str, kind: str) -> web.Response:
    return web.Response(text=(_HERE / name).read_text(encoding="utf-8"), content_type=kind)
