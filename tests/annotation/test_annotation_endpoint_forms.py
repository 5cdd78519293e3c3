"""Services that speak the protocol in their own way: what they refuse is learned once, what they say is quoted, patience ends."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from cpo_ray.annotation.asking.questions import Question
from cpo_ray.annotation.back_ends.base import BackEndUnusable, Reply, Unanswered
from cpo_ray.annotation.back_ends.endpoint import EndpointBackEnd
from cpo_ray.annotation.back_ends.endpoint_settings import EndpointSettings
from cpo_ray.annotation.back_ends.protocol import RequestForm, reason_in
from cpo_ray.annotation.pictures import Picture

QUESTION = Question("root", "system", "user", {"type": "object", "properties": {"prompt": {"type": "string"}}})
PICTURE = Picture("a", "", "digest", b"seen", "image/png", (1, 1), (1, 1))
#: A request's body → (status, headers, answer).
Service = Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]


def answered(text: Any = "{}", ended: str = "stop") -> tuple[int, dict[str, str], Any]:
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": ended}]}


def failed(status: int, body: Any, **headers: str) -> Service:
    return lambda request: (status, headers, body)


@contextmanager
def served(service: Service) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The url of a service on loopback, and the requests that it has had."""
    had: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            had.append(request | {"path": self.path})
            status, headers, body = service(request)
            text = body if isinstance(body, bytes | str) else json.dumps(body)
            data = text.encode() if isinstance(text, str) else text
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", had
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(url: str, times: int = 1, **settings: Any) -> list[Reply]:
    async def asked() -> list[Reply]:
        defaults = {"attempts": 2, "backoff_seconds": 0.01, "patience_seconds": 0.2}
        back_end = EndpointBackEnd(EndpointSettings(kind="endpoint", model="m", url=url, **(defaults | settings)), "cpu")
        try:
            return [await back_end.ask(PICTURE, QUESTION, "") for _ in range(times)]
        finally:
            await back_end.close()

    return asyncio.run(asked())


def test_what_a_service_refuses_is_learned_once() -> None:
    """Three parts of a request, one after the other, in the words of public services."""

    def service(request: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        if "max_tokens" in request:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return 400, {}, {"error": {"message": said, "param": "max_tokens"}}
        if "temperature" in request:
            said = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is."
            return 400, {}, {"error": {"message": said}}
        if request.get("response_format", {}).get("type") == "json_schema":
            return 400, {}, {"error": "This response_format type is unavailable now: json_schema is not supported"}
        return answered('{"prompt": "x"}')

    with served(service) as (url, had):
        replies = ask(url, times=3)
    assert [reply.calls for reply in replies] == [4, 1, 1]
    last = had[-1]
    assert last["max_completion_tokens"] == 1024 and "temperature" not in last
    assert last["response_format"] == {"type": "json_object"} and '"prompt"' in last["messages"][0]["content"]


def test_a_refusal_of_something_else_is_quoted_and_ends() -> None:
    with (
        served(failed(400, {"detail": [{"msg": "maximum context length is 4096 tokens, lower max_tokens"}]})) as (url, had),
        pytest.raises(Unanswered, match="refused it with status 400: maximum context length is 4096"),
    ):
        ask(url)
    assert len(had) == 1
    assert RequestForm().without("unknown parameter: seed") is None


@pytest.mark.parametrize("retry_after", ["0", "-1", "0.000001", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_service_that_says_to_wait_no_time_is_not_stormed(retry_after: str) -> None:
    began = time.monotonic()
    service = failed(429, {"error": {"message": "Rate limit reached"}}, Retry_After=retry_after)
    with served(service) as (url, had), pytest.raises(Unanswered, match=r"too much to do for 0.2 s: Rate limit reached"):
        ask(url)
    assert len(had) <= 6 and time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        (
            failed(429, {"error": {"message": "No quota", "code": "insufficient_quota"}}),
            "used up: No quota",
        ),
        (failed(402, {"error": "Insufficient Balance"}), "used up: Insufficient Balance"),
        (failed(200, {"error": {"message": "gone", "type": "insufficient_quota"}}), "used up: gone"),
        (failed(401, {"error": {"message": "Incorrect API key"}}), "does not accept the key: Incorrect API key"),
        (failed(307, "", Location="https://elsewhere.example/v1?token=x"), "redirects to https://elsewhere.example/v1; if you"),
    ],
)
def test_what_no_waiting_cures_is_told_at_once(service: Service, expected: str) -> None:
    with served(service) as (url, had), pytest.raises(BackEndUnusable, match=expected):
        ask(url)
    assert len(had) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"error": "model not loaded"},
        {"error": {"message": "model not loaded"}},
        [{"error": {"message": "model not loaded"}}],
        {"choices": [], "message": "model not loaded"},
        {"detail": "model not loaded"},
        {"object": "error", "message": "model not loaded", "code": 500},
    ],
)
def test_an_error_inside_a_200_is_quoted(body: Any) -> None:
    with served(failed(200, body)) as (url, _), pytest.raises(Unanswered, match="lastly: it answered with an error: model not"):
        ask(url)


def test_other_forms_of_errors_and_keys_in_them() -> None:
    assert reason_in(b"<html><head><title>502 Bad Gateway</title></head><body>x</body>") == "502 Bad Gateway"
    assert reason_in(b"upstream \x1b[31m timed\nout with sk-1", "sk-1") == "upstream [31m timed out with …"
    assert reason_in({"errors": [{"code": 7, "reason": "too large"}]}) == "too large"
    assert reason_in({"choices": []}) == ""


def test_a_cut_answer_names_the_setting() -> None:
    with (
        served(lambda request: answered(None, "length")) as (url, _),
        pytest.raises(Unanswered, match=r"cut off after annotation.back_end.max_tokens = 7; allow more"),
    ):
        ask(url, max_tokens=7)


def test_an_answer_in_parts_is_put_together() -> None:
    with served(lambda request: answered([{"type": "text", "text": "{"}, {"type": "text", "text": "}"}])) as (url, _):
        assert ask(url)[0].text == "{}"


def test_a_wrong_address_is_hinted_at() -> None:
    with served(failed(404, "not found")) as (url, had):
        with pytest.raises(BackEndUnusable, match=rf"many have it at {url}$"):
            ask(url.removesuffix("/v1"))
        assert had[0]["path"] == "/chat/completions"
    for ending in ("/chat/completions", "/v1/completions", "/v1/models"):
        with pytest.raises(ValueError, match="url goes up to the version"):
            EndpointSettings(kind="endpoint", model="m", url=f"http://127.0.0.1:1{ending}")


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    with served(lambda request: answered("x" * 2**21)) as (url, _), pytest.raises(Unanswered, match="longer than a mebibyte"):
        ask(url)


def test_a_packed_answer_is_not_unpacked_to_its_end() -> None:
    """50 kB that unpack to 50 MB: no more than a mebibyte and a bit of it is ever in memory."""
    packed = gzip.compress(b'{"choices": "' + bytes(50_000_000))
    with served(failed(200, packed, Content_Encoding="gzip")) as (url, _):
        tracemalloc.start()
        try:
            with pytest.raises(Unanswered, match="longer than a mebibyte"):
                ask(url)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert most < 12_000_000


def test_a_proxy_is_used_where_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda request: answered()) as (proxy, had):
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert ask("http://service.invalid/v1", proxy=True)[0].text == "{}"
        assert had[0]["path"] == "http://service.invalid/v1/chat/completions"
        with pytest.raises(Unanswered, match="failed 2 times"):
            ask("http://service.invalid/v1")
