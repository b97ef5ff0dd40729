"""The page's routes: what is served, under which headers, and to whom."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from vtr_server.page import routes as pages
from vtr_server.page.routes import PageData, page_data
from vtr_server.policy.settings import JobsSettings, LimitSettings, ServerSettings
from vtr_vllm.demo import CHECKPOINT, sample

FOLDER = Path(pages.__file__).parent
FILES = sorted(
    path.name for path in FOLDER.iterdir() if path.suffix in (".html", ".js", ".css", ".svg")
)
CLIP = {"do_resize": True, "do_center_crop": True, "size": {"shortest_edge": 336}}


def client_of(facts: PageData) -> TestClient:
    app = FastAPI()
    app.include_router(pages.router)
    app.state.page = facts
    return TestClient(app)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return client_of(page_data(str(CHECKPOINT), CLIP, ServerSettings()))


def path_of(name: str) -> str:
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_as_it_is(client: TestClient, name: str) -> None:
    answer = client.get(path_of(name))
    assert (answer.status_code, answer.content) == (200, (FOLDER / name).read_bytes())
    kind = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    expected = kind.get(name.rpartition(".")[2], "image/svg+xml")
    assert answer.headers["content-type"].startswith(expected)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_but_this_server_may_be_loaded(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'self'"
    assert rules["img-src"] == "'self' data: blob:"
    assert rules["style-src"] == "'self' blob:"
    assert set(rules) & {"script-src", "connect-src"} == set()  # no way around it
    assert (rules["base-uri"], rules["frame-ancestors"]) == ("'none'", "'none'")


def test_a_known_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/app.js")
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = client.get("/page/app.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    changed = client.get("/page/app.js", headers={"If-None-Match": '"other"'})
    assert (changed.status_code, changed.content) == (200, first.content)
    assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/samples/0.png"])
def test_head_tells_what_get_would(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize(
    "path",
    [
        "/page/none.js",
        "/page/index.html",
        "/page/..%2fpages.py",
        "/page/%2e%2e%2fsettings.py",
        "/page/samples/3.png",
        "/page/samples/-1.png",
        "/page/samples/0",
        "/page/samples/..%2f0.png",
    ],
)
def test_what_is_not_there_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_has_neither_script_nor_style_inline() -> None:
    text = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", text)


def test_every_file_that_is_named_exists() -> None:
    text = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:src|href)="page/([^"]+)"', text)
    for script in FOLDER.glob("*.js"):
        named += re.findall(r'^import .* from "\./([^"]+)";$', script.read_text(), re.MULTILINE)
    assert set(named) == set(FILES) - {"index.html"}


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host(name: str) -> None:
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\bhttps?:|[\"'(]//|@import|\burl\(", text)


def test_every_element_that_a_script_wants_is_there() -> None:
    ids = set(re.findall(r'\sid="([^"]+)"', (FOLDER / "index.html").read_text()))
    for script in FOLDER.glob("*.js"):
        wanted = set(re.findall(r'byId\("([^"]+)"\)', script.read_text()))
        assert wanted <= ids, script.name


def test_the_samples_are_those_of_the_demo_world(client: TestClient) -> None:
    listed = client.get("/page/samples.json").json()["data"]
    drawn = [sample(*where) for where in pages.SAMPLES]
    assert [entry["question"] for entry in listed] == [one.question for one in drawn]
    for entry, one in zip(listed, drawn, strict=True):
        answer = client.get(f"/{entry['image']}")
        assert answer.headers["content-type"] == "image/png"
        assert len(answer.content) < 128 * 1024
        assert Image.open(io.BytesIO(answer.content)).tobytes() == one.image.tobytes()


def test_another_model_has_no_samples() -> None:
    client = client_of(page_data("llava-hf/llava-1.5-7b-hf", CLIP, ServerSettings()))
    assert client.get("/page/samples.json").json() == {"data": []}
    assert client.get("/page/samples/0.png").status_code == 404
    assert client.get("/").status_code == 200


def test_the_page_is_told_the_limits() -> None:
    settings = ServerSettings(
        limits=LimitSettings(images=3, image_pixels=1000), jobs=JobsSettings(memory_share=0.3)
    )
    told = client_of(page_data("other", CLIP, settings)).get("/page/config.json").json()
    assert (told["images"], told["image_pixels"], told["jobs"]) == (3, 1000, True)
    assert (
        client_of(page_data("other", {}, ServerSettings())).get("/page/config.json").json()["jobs"]
        is False
    )


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (CLIP | {"crop_size": {"height": 336, "width": 336}}, ("centre", 1.0)),
        (CLIP | {"crop_size": 224}, ("centre", 224 / 336)),
        (CLIP | {"crop_size": 448}, ("unknown", 1.0)),
        (CLIP | {"crop_size": {"height": 336, "width": 224}}, ("unknown", 1.0)),
        (CLIP | {"crop_size": 336, "size": {"height": 336, "width": 336}}, ("unknown", 1.0)),
        (CLIP, ("unknown", 1.0)),
        ({"do_resize": True, "size": {"height": 384, "width": 384}}, ("whole", 1.0)),
        ({"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": 9}, ("whole", 1.0)),
        ({"do_resize": True, "do_pad": True, "size": {"height": 9, "width": 9}}, ("unknown", 1.0)),
        ({}, ("unknown", 1.0)),
    ],
)
def test_what_a_model_sees_of_an_image(
    processor: dict[str, Any], expected: tuple[str, float]
) -> None:
    facts = page_data("other", processor, ServerSettings())
    assert (facts.frame, facts.share) == expected
