"""The guard of every page that a process of ours serves: who may ask for what, and how it is started.

Only somebody with the page's address can see its data or send something. Other users of the machine lack the token. Requests from
other sites in the reader's browser carry another host, another origin or no token. The page keeps its token in sessionStorage,
which belongs to one tab and one port; a cookie would be sent to every port of the machine.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import secrets
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

from cpo_ray.config.review import is_loopback

#: Most bytes of a request.
MOST_BYTES = 256 * 1024
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Unserved(RuntimeError):
    """A page cannot be served; the message says why."""


class Guard:
    """Checks every request for a page that is reached under the name `host`. `bare` are paths without data, free for all."""

    def __init__(self, host: str, token: str, bare: Collection[str]) -> None:
        self._token, self._bare = token, frozenset(bare)
        # The port may differ: a reader at another desk comes through a tunnel with its own port.
        self._hosts = {host.lower(), "localhost", "127.0.0.1", "::1"} if is_loopback(host) else {host.lower()}

    def application(self, *routes: web.RouteDef) -> web.Application:
        """Return an application of these routes that answers guarded requests alone."""
        application = web.Application(middlewares=[self._check], client_max_size=MOST_BYTES)
        application.add_routes(routes)
        return application

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn every refusal into a sentence."""
        try:
            self._refuse(request)
            response = await handler(request)
        except web.HTTPException as error:
            response = web.json_response({"error": error.text}, status=error.status)
        response.headers.update(_HEADERS)
        return response

    def _refuse(self, request: web.Request) -> None:
        host = request.headers.get("Host", "")
        if _hostname(host) not in self._hosts:
            raise web.HTTPMisdirectedRequest(text=f"this page is not served as {host!r}")
        if request.path not in self._bare:
            given = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                raise web.HTTPForbidden(
                    text="open the address that the terminal shows where the page was started, with its token"
                )
        if request.method != "GET":
            origin = request.headers.get("Origin", "")
            if origin.partition("://")[2].lower() != host.lower():
                raise web.HTTPForbidden(text=f"nothing is taken from pages of {origin or 'nowhere'}")
            if request.content_type != "application/json":
                raise web.HTTPUnsupportedMediaType(text="what is sent is application/json")


async def serve(made: Callable[[str], web.Application], host: str, port: int, setting: str) -> None:
    """Print the address of a page and serve it until this is cancelled. `made` returns the application for a token.

    Raises Unserved if the port is taken; `setting` is what chooses another one.
    """
    token = secrets.token_urlsafe(24)
    runner = web.AppRunner(made(token), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        name = f"[{host}]" if ":" in host else host
        # A browser sends nothing of what is behind the #.
        print(f"http://{name}:{runner.addresses[0][1]}/#token={token}", flush=True)
        await asyncio.Event().wait()
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise Unserved(f"port {port} of {host} {why}; give another, such as {setting}={port + 1}") from None
    finally:
        await runner.cleanup()


def _hostname(host: str) -> str | None:
    """Return the host without its port; None for a text that is not a host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
