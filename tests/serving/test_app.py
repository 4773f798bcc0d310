"""A real server of a tiny file, asked over HTTP: its answers by their definition, its refusals in one sentence."""

import gzip
import hashlib
import json
import re
import time
import zlib

import numpy as np
import pytest
from helpers.requests import ask, encoded, form, predict, send_raw
from helpers.served import CLASSES, PREPROCESSING, expected, mean_colour_model, running
from PIL import Image

SIDE = PREPROCESSING["stored_size"]
UNSURE = {"below": 0.6, "refused": 0.1, "accuracy": 0.95, "images": 30}
MIB = 2**20


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return mean_colour_model(tmp_path_factory.mktemp("model") / "tiny.onnx", unsure=UNSURE)


@pytest.fixture(scope="module")
def server(file, tmp_path_factory):
    limits = ("--max-images", 3, "--max-image-size", "1MiB", "--max-pixels", 1)
    with running(file, *limits, log=tmp_path_factory.mktemp("log") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def label_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    names = ("<b>blue</b>", "gr\udce9en", "red\u202e")
    file = mean_colour_model(folder / "labels.onnx", classes=names, task="multilabel", thresholds=[0.5, 0.4, 0.9])
    with running(file, log=folder / "log") as server:
        yield server


def noise(width, height, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def colour(red, green, blue):
    return encoded(np.full((SIDE, SIDE, 3), (red, green, blue), dtype=np.uint8))


def bomb(side):
    """A PNG of side × side black pixels: a few kilobytes."""
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")  # noqa: E731
    size = side.to_bytes(4, "big") * 2
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x01\x00\0\0\0") + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_probabilities_are_those_of_the_image_as_pillow_resizes_it(server):
    pixels = noise(36, 36)
    resized = np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    (row,) = predict(server, encoded(pixels)).json["predictions"]
    assert list(row["probabilities"]) == list(CLASSES)
    assert list(row["probabilities"].values()) == pytest.approx(expected(resized), abs=1e-5)


def test_prediction_is_the_most_probable_class(server):
    (row,) = predict(server, colour(190, 100, 90)).json["predictions"]
    assert (row["label"], row["labels"], row["unsure"]) == ("red", ["red"], False)
    assert row["probability"] == max(row["probabilities"].values())


def test_each_image_of_a_form_has_its_row_in_order(server):
    parts = [("image", f"{k}.png", colour(*(200 * (c == k) for c in range(3)))) for k in range(3)]
    rows = predict(server, *parts).json["predictions"]
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert [row["label"] for row in rows] == ["red", "green", "blue"]


@pytest.mark.parametrize("kind", ["image/png", "image/*", "application/octet-stream", "IMAGE/JPEG; q=1"])
def test_image_may_be_the_whole_body(server, kind):
    answer = ask(server, "/predict", "POST", colour(200, 0, 0), {"Content-Type": kind})
    assert answer.json["predictions"][0]["label"] == "red"


def test_body_may_come_in_chunks_of_unknown_number(server):
    content = colour(0, 0, 200)
    answer = ask(
        server,
        "/predict",
        "POST",
        (content[i : i + 7] for i in range(0, len(content), 7)),
        {"Content-Type": "image/png"},
    )
    assert answer.json["predictions"][0]["label"] == "blue"


def test_one_unreadable_image_of_several_has_an_error_in_its_row(server):
    answer = predict(server, colour(200, 0, 0), ("images", "b.jpg", b"no image"))
    red, damaged = answer.json["predictions"]
    assert answer.status == 200
    assert red["label"] == "red"
    assert damaged["label"] is None
    assert damaged["error"].startswith("b.jpg cannot be read as an image (empty, or in none of the formats")


def test_images_that_all_are_unreadable_are_refused(server):
    answer = predict(server, b"", b"GIF89a")
    assert answer.status == 422
    assert answer.json["error"] == "None of the 2 images can be read, as their rows say."
    assert all(row["error"] for row in answer.json["predictions"])


def test_single_unreadable_image_is_refused_with_its_reason(server):
    answer = predict(server, ("image", "a.jpg", colour(1, 2, 3)[:40]))
    assert answer.status == 422
    assert answer.json["error"].startswith("a.jpg cannot be read as an image (")


def test_top_tells_the_most_probable_classes_highest_first(server):
    (row,) = predict(server, colour(140, 120, 130), query="?top=2").json["predictions"]
    assert list(row["probabilities"]) == ["red", "blue"]


# Mean colours of 128 + 16 × log-odds
@pytest.mark.parametrize(
    ("query", "unsure"),
    [("", True), ("?min_confidence=auto", True), ("?min_confidence=0.5", False), ("?min_confidence=0", False)],
)
def test_unsure_is_below_the_studys_confidence_or_what_a_request_asks_for(server, query, unsure):
    (row,) = predict(server, colour(144, 128, 128), query=query).json["predictions"]
    assert row["probability"] == pytest.approx(np.e / (np.e + 2), abs=1e-5)  # 0.576
    assert row["unsure"] is unsure


@pytest.mark.parametrize(("query", "unsure"), [("?min_confidence=0.7", False), ("?min_confidence=0.8", True)])
def test_answer_that_no_label_is_there_is_as_sure_as_the_likeliest_is_improbable(label_server, query, unsure):
    (row,) = predict(label_server, colour(112, 112, 112), query=query).json["predictions"]
    assert row["labels"] == []
    assert row["probability"] == pytest.approx(1 / (1 + np.e), abs=1e-5)  # 0.269
    assert row["unsure"] is unsure


def test_several_labels_are_those_at_their_thresholds(label_server):
    (row,) = predict(label_server, colour(150, 126, 140)).json["predictions"]
    blue, green, red = (1 / (1 + np.exp(-(value - 128) / 16)) for value in (140, 126, 150))
    assert list(row["probabilities"].values()) == pytest.approx([blue, green, red], abs=1e-5)
    assert (blue >= 0.5, green >= 0.4, red >= 0.9) == (True, True, False)
    assert row["labels"] == ["<b>blue</b>", "gr\udce9en"]


def test_several_labels_may_be_none(label_server):
    (row,) = predict(label_server, colour(0, 0, 0)).json["predictions"]
    assert row["labels"] == []


def test_answer_is_ascii_whatever_classes_are_called(label_server):
    assert predict(label_server, colour(0, 0, 0)).content.isascii()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../../etc/passwd", "passwd"),
        (r"C:\photos\a.png", "a.png"),
        (b"caf\xe9.png", r"caf\xe9.png"),
        ("日本.png", "日本.png"),
        ("a\x1b[2J.png", r"a\x1b[2J.png"),
        ("", "image 1"),
        ("x" * 1000, "x" * 200),
    ],
)
def test_names_are_told_without_folders_and_unseen_characters(server, name, told):
    (row,) = predict(server, ("image", name, colour(9, 9, 9))).json["predictions"]
    assert row["image"] == told


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b'{"urls": ["http://127.0.0.1/"]}', {"Content-Type": "application/json"}, 415, "fetches no addresses"),
        (b"http://127.0.0.1/", {"Content-Type": "text/plain"}, 415, "fetches no addresses"),
        (b"x", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "is not taken; send image files"),
        (b"x", {}, 415, "no Content-Type is not taken"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "has no boundary"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=" + "b" * 300}, 400, "is damaged"),
        (b"nothing", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "is damaged"),
        (*form(("images", "a.png", b"x"), end=False), 400, "ends before its last boundary"),
        (*form(), 422, "The form has no image"),
        (*form(("urls", None, b"http://127.0.0.1/")), 422, "fetches no addresses"),
        (*form(("image", None, b"http://127.0.0.1/")), 422, "fetches no addresses"),
        (*form(("photo", "a.png", b"x")), 422, "has the field 'photo'; name the files image or images"),
        (*form(*[("images", "a.png", b"x")] * 4), 413, "more than 3 images"),
        (*form(("images", "a.png", bytes(MIB + 1))), 413, "a.png has more than 1 MiB; make it smaller"),
        (bytes(MIB + 1), {"Content-Type": "image/png"}, 413, "the image has more than 1 MiB"),
        (bytes(5 * MIB), {"Content-Type": "multipart/form-data; boundary=b"}, 413, "more than 4 MiB"),
        (b"", {"Content-Type": "image/png"}, 422, "The body is empty"),
        (gzip.compress(b"x", mtime=0), {"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415, "is compressed"),
    ],
)
def test_what_holds_no_image_is_refused_in_one_sentence(server, body, headers, status, sentence):
    answer = ask(server, "/predict", "POST", body, headers)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert sentence in answer.json["error"]


def test_size_is_counted_whatever_headers_say_of_it(server):
    answer = ask(server, "/predict", "POST", iter([bytes(2**18)] * 5), {"Content-Type": "image/png"})
    assert (answer.status, answer.json["error"]) == (413, "the image has more than 1 MiB; make it smaller.")


def test_decompression_bomb_is_refused_before_it_is_decoded(server):
    answer = predict(server, ("image", "bomb.png", bomb(8000)))
    assert answer.status == 422
    assert "8000 × 8000 pixels are more than the 1 million that are read" in answer.json["error"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?top=0", "top must be a whole number ≥ 1, but got 0."),
        ("?top=x", "top must be a whole number ≥ 1, but got x."),
        ("?min_confidence=2", "min_confidence must be a number from 0 to 1, or auto, but got 2."),
        ("?min_confidence=nan", "min_confidence must be a number from 0 to 1, or auto, but got nan."),
        ("?tpo=1", "The parameter tpo is unknown (did you mean top?); there are top and min_confidence."),
    ],
)
def test_parameters_out_of_range_are_told(server, query, sentence):
    answer = predict(server, colour(1, 2, 3), query=query)
    assert (answer.status, answer.json) == (422, {"error": sentence})


@pytest.mark.parametrize(
    ("path", "method", "status", "sentence"),
    [
        ("/nothing", "GET", 404, "There is nothing at /nothing; POST images to /predict, or see /."),
        ("/%1b[2J", "GET", 404, r"There is nothing at /\x1b[2J; POST images to /predict, or see /."),
        ("/../../etc/passwd", "GET", 404, "There is nothing at /../../etc/passwd; POST images to /predict, or see /."),
        ("/docs", "GET", 404, "There is nothing at /docs; POST images to /predict, or see /."),
        ("/predict", "GET", 405, "GET is not taken at /predict; use POST."),
        ("/metadata", "DELETE", 405, "DELETE is not taken at /metadata; use GET, HEAD."),
    ],
)
def test_wrong_addresses_and_methods_are_told(server, path, method, status, sentence):
    answer = ask(server, path, method)
    assert (answer.status, answer.json) == (status, {"error": sentence})


def test_what_is_no_http_is_told(server):
    answer = send_raw(server, b"\x16\x03\x01 this is TLS\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
        "error": "What was sent is no HTTP request; use an HTTP client."
    }


def test_endless_headers_are_cut_off(server):
    answer = send_raw(server, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""  # reset while it was being sent


def test_connection_is_kept_after_a_refusal_that_was_read_whole(server):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\nabc"
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = send_raw(server, head + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"422", b"200"]


def test_connection_is_closed_after_a_body_that_is_not_read(server):
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    assert re.findall(rb"(?i)connection: (\w+)", send_raw(server, head)) == [b"close"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_told(server, path, method):
    answer = ask(server, path, method)
    assert answer.status == 200
    assert method == "HEAD" or answer.json["live" if path != "/health/ready" else "ready"] is True


def test_metadata_tells_classes_preprocessing_and_the_files_checksum(server, file):
    told = ask(server, "/metadata").json
    assert told["classes"] == list(CLASSES)
    assert told["preprocessing"] == PREPROCESSING
    assert told["model"] == {
        "name": "tiny.onnx",
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert (told["unsure"], told["min_confidence"]) == (UNSURE, UNSURE["below"])
    assert told["limits"]["max_pixels"] == 1_000_000


def metric(server, name):
    text = ask(server, "/metrics").content.decode()
    return {
        found[1] or "": float(found[2]) for found in re.finditer(rf"^{name}(\{{.*?\}})? (\S+)$", text, re.MULTILINE)
    }


def test_metrics_count_requests_images_and_batches(server):
    names = ("requests_total", "images_total", "batch_images_sum", "request_seconds_count")
    before = {name: metric(server, f"delta_tune_{name}") for name in names}
    predict(server, colour(200, 0, 0), colour(128, 128, 128), b"damaged")
    predict(server, b"damaged")
    after = {name: metric(server, f"delta_tune_{name}") for name in names}

    def more(name, labels):
        return after[name][labels] - before[name].get(labels, 0)

    assert more("requests_total", '{path="/predict",status="200"}') == 1
    assert more("requests_total", '{path="/predict",status="422"}') == 1
    assert more("request_seconds_count", '{path="/predict"}') == 2
    assert [more("images_total", f'{{result="{result}"}}') for result in ("predicted", "unsure", "unreadable")] == [
        1,
        1,
        2,
    ]
    assert more("batch_images_sum", "") == 2


def test_metrics_have_no_labels_that_clients_choose(server):
    ask(server, "/of-my-own")
    assert "of-my-own" not in ask(server, "/metrics").content.decode()
    assert metric(server, "delta_tune_requests_total")['{path="other",status="404"}'] >= 1


def test_queue_is_empty_after_work(server):
    predict(server, colour(1, 2, 3))
    assert metric(server, "delta_tune_queue_images") == {"": 0}


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/icon.svg"])
def test_page_needs_nothing_from_elsewhere(server, path):
    answer = ask(server, path)
    content = answer.content.replace(b'xmlns="http://www.w3.org/2000/svg"', b"")  # a name, not an address
    assert answer.status == 200
    assert not re.search(rb"https?://|//[a-z]|@import|innerHTML|document\.write|\beval\b", content)


def test_every_answer_has_a_policy_for_its_content(server):
    for path in ("/", "/metadata", "/nothing"):
        policy = ask(server, path).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_no_other_origin_may_read_answers(server):
    answer = ask(server, "/metadata", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_openapi_describes_the_addresses(server):
    told = ask(server, "/openapi.json").json
    assert set(told["paths"]) == {"/predict", "/health", "/health/live", "/health/ready", "/metadata", "/metrics"}
    assert set(told["paths"]["/predict"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "image/*"}


def test_log_has_a_line_for_each_request_without_what_a_terminal_acts_on(server):
    ask(server, "/%1b%5b2J%0afaked")
    deadline = time.monotonic() + 20
    while "faked" not in server.log.read_text():  # the line is written after the answer
        assert time.monotonic() < deadline
    (line,) = (line for line in server.log.read_text().splitlines() if "faked" in line)
    assert r" 127.0.0.1 GET /\x1b[2J\nfaked 404 " in line


def test_server_says_where_it_listens(server):
    assert f"tiny.onnx (3 classes) at http://127.0.0.1:{server.port}; Ctrl-C ends it" in server.said
