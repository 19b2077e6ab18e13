"""The pages for people, as they are sent. What they do is tested in a browser (web/tests)."""

from __future__ import annotations

import gzip
import io
import re
import zipfile

import pytest

from minisgl.server.web_pages import BUILT, HEADERS, TYPES
from tests.python.server.conftest import Server, StartServer

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGES = {path.stem: path.read_text() for path in BUILT.glob("*.html")}
MAX_COMPRESSED_BYTES = 500_000


async def test_a_browser_gets_the_chat_and_other_clients_the_words_of_ollama(
    server: Server,
) -> None:
    page = await server.http.get("/", headers=BROWSER)
    assert (page.status_code, page.text) == (200, PAGES["chat"])
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    others = await server.http.get("/")
    assert others.text == "minisgl is running"
    assert all("Accept" in answer.headers["vary"].split(", ") for answer in (page, others))
    assert (await server.http.head("/", headers=BROWSER)).status_code == 200


async def test_what_pages_refer_to_is_there_and_is_kept_forever(server: Server) -> None:
    for page in PAGES.values():
        names = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert names
        for name in names:
            answer = await server.http.get("/" + name)
            assert answer.status_code == 200, name
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    answer = await server.http.get("/static/nothing.js")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    for path in ("/static/..%2Fchat.html", "/static/../web_pages.py"):
        assert (await server.http.get(path)).status_code == 404


async def test_an_unchanged_page_is_not_sent_again(server: Server) -> None:
    first = await server.http.get("/", headers=BROWSER)
    assert first.headers["cache-control"] == "no-cache"
    headers = {**BROWSER, "if-none-match": first.headers["etag"]}
    again = await server.http.get("/", headers=headers)
    assert (again.status_code, again.content) == (304, b"")


async def test_files_are_compressed_for_those_who_take_it(server: Server) -> None:
    name = re.findall(r'src="([^"]+)"', PAGES["chat"])[0]
    async with server.http.stream("GET", "/" + name) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
        assert answer.headers["content-encoding"] == "gzip"
    plain = await server.http.get("/" + name, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 2


async def test_the_policy_lets_nothing_in(server: Server) -> None:
    for path in ("/", *("/static/" + path.name for path in (BUILT / "static").iterdir())):
        answer = await server.http.get(path, headers=BROWSER)
        assert HEADERS.items() <= dict(answer.headers).items()
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for page in PAGES.values():
        assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", page)


def test_the_files_are_small_and_of_known_types() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in BUILT.rglob("*"):
            if path.is_file():
                assert path.suffix in TYPES or path.name == "licenses.txt"
                wheel.write(path)
    assert len(archive.getvalue()) < MAX_COMPRESSED_BYTES


def test_the_terms_of_what_others_wrote_come_with_it() -> None:
    text = (BUILT / "licenses.txt").read_text()
    for name in ("preact", "@preact/signals", "marked", "dompurify", "highlight.js", "temml"):
        assert re.search(rf"^{name} \d+\.\d+\.\d+ \(", text, re.MULTILINE), name


async def test_no_ui(start_server: StartServer) -> None:
    async with start_server(no_ui=True) as server:
        assert (await server.http.get("/", headers=BROWSER)).text == "minisgl is running"
        for path in ("/ui/settings", "/static/main.css"):
            assert (await server.http.get(path)).status_code == 404


async def test_the_prefix_of_a_proxy_may_stay_in_front(start_server: StartServer) -> None:
    async with start_server(root_path="/model") as server:
        bare = await server.http.get("/model", headers=BROWSER)
        assert (bare.status_code, bare.headers["location"]) == (307, "/model/")
        page = await server.http.get("/model/", headers=BROWSER)
        assert page.text == PAGES["chat"]
        name = re.findall(r'src="([^"]+)"', page.text)[0]
        assert (await server.http.get(f"/model/{name}")).status_code == 200


async def test_settings(start_server: StartServer) -> None:
    defaults = {"temperature": 0.6, "top_k": 20}
    async with start_server(api_key=("key",), sampling_defaults=defaults) as server:
        assert (await server.http.get("/ui/settings")).status_code == 401
        key = {"authorization": "Bearer key"}
        settings = (await server.http.get("/ui/settings", headers=key)).json()
        assert settings["models"] == ["org/test-model", "alias"]
        assert settings["max_model_len"] == 256
        assert settings["sampling"]["temperature"] == {"default": 0.6, "least": 0, "most": 100}
        assert settings["sampling"]["top_k"] == {"default": 20, "least": -1, "most": None}
        assert settings["operators"] is False


@pytest.mark.parametrize("end", ["least", "most"])
async def test_the_ends_of_ranges_are_taken(server: Server, end: str) -> None:
    sampling = (await server.http.get("/ui/settings")).json()["sampling"]
    fields = {name: one[end] for name, one in sampling.items() if one[end] is not None}
    if end == "least":
        del fields["repetition_penalty"]  # which has to be above it
    answer = await server.chat(**fields)
    assert answer.status_code == 200, answer.text
