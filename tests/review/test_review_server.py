"""Who may see the page and judge, and who may not."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from support.reviewing import TOKEN, Served, settings

from cpo_ray.config.review import ReviewSettings
from cpo_ray.review.server import shown


class Client:
    """Speaks plain HTTP, so that it can say what no browser would."""

    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, timeout=10)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask("GET", path, None, **{"Authorization": f"Bearer {TOKEN}", **headers})

    def judge(self, number: int, sent: Any, **changes: str) -> tuple[int, str]:
        sent_from = {"Authorization": f"Bearer {TOKEN}", "Origin": f"http://{self.host}", "Content_Type": "application/json"}
        headers = {**sent_from, **changes}
        body = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
        status, _, content = self.ask("POST", f"/pictures/{number}", body, **headers)
        return status, content.decode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(settings(tmp_path_factory.mktemp("served"))) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Client:
    return Client(served.port)


def test_the_address_with_its_token_lets_in(client: Client) -> None:
    """The page itself holds no data and is free for all. No cookie is set: cookies reach every port of a host."""
    status, headers, page = client.ask("GET", "/")
    assert status == 200 and b"page.js" in page and TOKEN.encode() not in page and "Set-Cookie" not in headers
    assert headers["X-Content-Type-Options"] == "nosniff" and "default-src 'none'" in headers["Content-Security-Policy"]
    for path, kind in (("/page.css", "text/css"), ("/page.js", "text/javascript"), ("/review", "application/json")):
        status, headers, _ = client.get(path)
        assert (status, headers["Content-Type"].split(";")[0]) == (200, kind)


@pytest.mark.parametrize("path", ["/review", f"/review?token={TOKEN}", "/pictures/0", "/pictures/0/image", "/nowhere"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer guessed"}, {"Cookie": f"token={TOKEN}"}])
def test_without_the_token_nothing_is_seen(client: Client, path: str, headers: dict[str, str]) -> None:
    status, _, content = client.ask("GET", path, None, **headers)
    assert status == 403 and b"open the address that the terminal shows" in content


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", ""])
def test_under_another_name_the_page_is_not_served(client: Client, host: str) -> None:
    assert client.get("/review", Host=host)[0] == client.get("/", Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:1", "[::1]:8770", "LOCALHOST"])
def test_a_tunnel_may_have_another_port(client: Client, host: str) -> None:
    assert client.get("/review", Host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../judgements.py", "/%2e%2e/pile.py", "/page.css/..%2fpile.py", "/pictures/..%2f..%2fetc/passwd", "/pictures/0/../../page",
     "/pictures/-1", "/pictures/0x1", "//etc/passwd", "/reviews/ann.jsonl"],
)  # fmt: skip
def test_no_path_leads_to_a_file(client: Client, path: str) -> None:
    assert client.get(path)[0] == 404


def test_pictures_are_encoded_anew(client: Client, served: Served) -> None:
    status, headers, image = client.get("/pictures/0/image")
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "image/png", "nosniff")
    with Image.open(io.BytesIO(image)) as ours, Image.open(io.BytesIO(served.pile.image(0))) as theirs:
        assert ours.tobytes() == theirs.convert("RGB").tobytes()
    stream = io.BytesIO()
    Image.new("CMYK", (3000, 600)).save(stream, "TIFF")
    large, kind = shown(stream.getvalue())
    with Image.open(io.BytesIO(large)) as picture:
        assert (kind, picture.format, picture.size, picture.mode) == ("image/jpeg", "JPEG", (2048, 410), "RGB")


def test_a_judgement_that_is_not_the_reviewers_is_not_kept(client: Client, served: Served) -> None:
    first, second = (json.loads(client.get(f"/pictures/{number}")[2]) for number in (0, 1))
    label = next(label for root in first["roots"] for label in root["positive"] + root["negative"])["id"]
    good = {"sample": first["id"], "verdicts": {label: "confirmed"}}
    refused = [
        (403, "pages of nowhere", client.judge(0, good, Origin="")),
        (403, "pages of http://evil.example", client.judge(0, good, Origin="http://evil.example")),
        (403, "pages of null", client.judge(0, good, Origin="null")),
        (403, "open the address", client.judge(0, good, Authorization="Bearer guessed")),
        (421, "not served as", client.judge(0, good, Host="evil.example", Origin="http://evil.example")),
        (415, "application/json", client.judge(0, good, Content_Type="text/plain")),
        (400, "not verdicts", client.judge(0, b"{")),
        (400, "not verdicts", client.judge(0, good | {"verdicts": {}})),
        (400, "not verdicts", client.judge(0, good | {"verdicts": {label: "maybe"}})),
        (413, "", client.judge(0, b" " * 300_000)),
        (409, "has no label '+edge.none'", client.judge(0, good | {"verdicts": {label: "confirmed", "+edge.none": "confirmed"}})),
        (409, "is no longer", client.judge(0, good | {"sample": second["id"]})),
        (409, "there is no picture 5", client.judge(4, good)),
    ]
    for status, sentence, (found, answer) in refused:
        assert found == status and sentence in answer, (found, answer)
    assert json.loads(client.get("/review")[2])["verdicts"] == {"confirmed": 0, "rejected": 0, "unsure": 0}
    assert client.get("/pictures/4")[0] == 404
    assert client.judge(0, good) == (200, '{"finished": false}')
    assert json.loads(client.get("/review")[2])["verdicts"]["confirmed"] == 1


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_the_page_is_served_on_one_address(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="one address or name"):
        ReviewSettings(annotations=tmp_path, hierarchy=tmp_path, judgements=tmp_path, host=host)
