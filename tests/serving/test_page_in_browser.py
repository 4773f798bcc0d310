"""The page in a real browser: photos are dropped and chosen, answers shown, names from data are text."""

import time

import numpy as np
import pytest
from helpers.browser import CHROMIUM, DRIVER, chromium
from helpers.requests import encoded
from helpers.served import mean_colour_model, running

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
NAMES = ("<img src=x onerror=alert(1)>", "gr\udce9en", "red\u202egnp.exe")
LIMIT_S = 30


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Red, doubtful, and no image."""
    folder = tmp_path_factory.mktemp("photos")
    for name, colour in (("red", (230, 60, 60)), ("grey", (129, 128, 128))):
        (folder / f"{name}.png").write_bytes(encoded(np.full((30, 20, 3), colour, dtype=np.uint8)))
    (folder / "none.jpg").write_bytes(b"no image")
    return [folder / name for name in ("red.png", "grey.png", "none.jpg")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    unsure = {"below": 0.6, "refused": 0.1, "accuracy": 0.95, "images": 30}
    file = mean_colour_model(folder / "tiny.onnx", classes=NAMES, unsure=unsure)
    with running(file, "--max-images", 2, log=folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def label_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    file = mean_colour_model(folder / "labels.onnx", task="multilabel", thresholds=[0.5, 0.5, 0.5])
    with running(file, log=folder / "log") as server:
        yield server


def visit(page, server, *, width=1280, dark=False):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    page.driver.get(server.url)


def until_done(page, photos):
    deadline = time.monotonic() + LIMIT_S
    while f"{photos} photo" not in (said := page.run("return document.getElementById('status').textContent")) or (
        "done" not in said
    ):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    texts = page.run("return [...document.querySelectorAll('#results > li')].map(each => each.innerText)")
    return ["\n".join(filter(None, text.splitlines())) for text in texts]


def drop(page, photos):
    """Let go of files over the page, as a hand with a mouse does."""
    place = {"x": 200, "y": 200, "data": {"items": [], "files": list(map(str, photos)), "dragOperationsMask": 1}}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **place})


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_dropped_photos_are_predicted(page, server, photos, width, dark):
    visit(page, server, width=width, dark=dark)
    drop(page, photos)
    red, grey, none = until_done(page, 3)
    assert red.splitlines()[:2] == [r"red\u202egnp.exe", "red.png"]
    assert "unsure" not in red
    assert grey.splitlines()[1:3] == ["unsure", "grey.png"]
    assert none.splitlines()[:2] == ["Not read", "none.jpg"]
    assert "none.jpg cannot be read as an image" in none
    said = [entry["message"] for entry in page.driver.get_log("browser")]
    assert len(said) == 1, said
    assert "422" in said[0]  # of the request that had the unreadable photo alone
    assert page.run("return document.documentElement.scrollWidth") == width
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 380) == dark


def test_class_names_are_text(page, server, photos):
    visit(page, server)
    drop(page, photos[:1])
    (red,) = until_done(page, 1)
    assert all(name in red for name in ("<img src=x onerror=alert(1)>", r"gr\udce9en"))
    assert NAMES[0] in page.run("return document.getElementById('about').textContent")
    assert page.run("return document.querySelectorAll('#results img').length") == 1


def test_files_can_be_chosen_without_a_mouse(page, server, photos):
    visit(page, server)
    page.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "key": "Tab", "windowsVirtualKeyCode": 9})
    assert page.run("return document.activeElement.id") == "files"
    assert page.run("return getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    page.driver.find_element("id", "files").send_keys("\n".join(map(str, photos[:2])))
    assert len(until_done(page, 2)) == 2


def test_second_choice_adds_to_the_first(page, server, photos):
    visit(page, server)
    for _ in range(2):
        page.driver.find_element("id", "files").send_keys(str(photos[0]))
    assert len(until_done(page, 2)) == 2


def test_several_labels_are_all_named(page, label_server, photos):
    visit(page, label_server)
    drop(page, photos[1:2])
    (grey,) = until_done(page, 1)
    assert set(grey.splitlines()[0].split(", ")) == {"red", "green", "blue"}


def test_photo_that_is_too_large_leaves_the_others_their_answers(page, photos, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(5000))
    file = mean_colour_model(tmp_path / "tiny.onnx")
    with running(file, "--max-image-size", "4KiB", log=tmp_path / "log") as server:
        visit(page, server)
        until = time.monotonic() + LIMIT_S
        while "3 classes" not in page.run("return document.getElementById('about').textContent"):
            assert time.monotonic() < until
        drop(page, [photos[0], large, photos[1]])
        red, said, grey = until_done(page, 3)
    assert (red.splitlines()[:2], grey.splitlines()[1]) == (["red", "red.png"], "grey.png")
    assert "large.png has more than" in said
    page.driver.get_log("browser")


def test_server_that_is_gone_is_told(page, photos, tmp_path):
    with running(mean_colour_model(tmp_path / "tiny.onnx"), log=tmp_path / "log") as server:
        visit(page, server)
        until = time.monotonic() + LIMIT_S
        while "3 classes" not in page.run("return document.getElementById('about').textContent"):
            assert time.monotonic() < until
        server.end()
        drop(page, photos[:1])
        (said,) = until_done(page, 1)
    assert "The server does not answer; it may have ended." in said
    page.driver.get_log("browser")
