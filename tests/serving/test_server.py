"""The server's process: slow, rude and too many clients, ends, ports, threads."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers.requests import ask, encoded, form, predict, send_raw
from helpers.served import START, Server, mean_colour_model, running

from delta_tune import load
from delta_tune.config import UserError
from delta_tune.serving.server import address_of, listen
from delta_tune.serving.threads import available_cpus

PHOTO = encoded(np.full((20, 20, 3), (200, 0, 0), dtype=np.uint8))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return mean_colour_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def server(file, tmp_path_factory):
    """A server that waits for nobody longer than a second, and has a short queue."""
    flags = ("--timeout", 1, "--threads", 1, "--max-images", 2, "--max-queue", 2)
    with running(file, *flags, log=tmp_path_factory.mktemp("log") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def slow_photo():
    """A photo that takes about a second to decode."""
    rng = np.random.default_rng(0)
    return encoded(rng.integers(0, 256, (4000, 5000, 3), dtype=np.uint8), "JPEG", quality=95, progressive=True)


def answers(server):
    (row,) = predict(server, PHOTO).json["predictions"]
    return row["label"] == "red"


def wait_until(condition, within_s=20):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST /predict HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_come_end_the_connection(server, sent):
    start = time.monotonic()
    answer = send_raw(server, sent, timeout=10)
    assert 0.9 < time.monotonic() - start < 6
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"The headers took longer than 1 s to arrive" in answer


def test_headers_that_do_not_come_again_end_the_connection(server):
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = send_raw(server, first + b"GET /hea", timeout=10)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert answer.count(b"HTTP/1.1 408 ") == 1


def test_body_that_does_not_come_is_refused_and_the_connection_closed(server):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
    start = time.monotonic()
    answer = send_raw(server, head, timeout=10)
    assert 0.9 < time.monotonic() - start < 6
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"The request took longer than 1 s to arrive" in answer
    assert b"connection: close" in answer


def test_client_that_leaves_is_forgotten(server):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(head)
    wait_until(lambda: b'status="499"' in ask(server, "/metrics").content)
    assert answers(server)


def test_shorter_content_length_leaves_no_request(server):
    body, headers = form(("image", "a.png", PHOTO))
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {headers['Content-Type']}\r\nContent-Length: 40\r\n\r\n"
    answer = send_raw(server, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answers(server)


@pytest.mark.alone
def test_images_beyond_the_queue_are_refused_for_now(server, slow_photo):
    busy = threading.Thread(target=predict, args=(server, slow_photo, slow_photo))
    busy.start()
    wait_until(lambda: b"delta_tune_queue_images 2.0" in ask(server, "/metrics").content)
    answer = predict(server, PHOTO)
    busy.join()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json == {"error": "The server is busy (its queue is full); send the request again in a second."}
    assert answers(server)


@pytest.mark.alone
def test_answer_that_takes_too_long_is_given_up(server, slow_photo):
    two = predict(server, slow_photo, slow_photo)
    assert two.status == 503
    assert two.json == {"error": "The answer took longer than 1 s; send fewer images."}
    wait_until(lambda: predict(server, PHOTO).status == 200)


@pytest.mark.alone
def test_health_is_told_while_images_are_at_work(server, slow_photo):
    busy = threading.Thread(target=predict, args=(server, slow_photo))
    busy.start()
    wait_until(lambda: b"delta_tune_queue_images 1.0" in ask(server, "/metrics").content)
    start = time.monotonic()
    assert ask(server, "/health").status == 200
    assert time.monotonic() - start < 0.7
    busy.join()


def test_connections_too_many_are_refused_and_free_ones_used_again(file, tmp_path):
    with running(file, "--max-connections", 3, log=tmp_path / "log") as server:
        with contextlib.ExitStack() as opened:
            for _ in range(3):
                opened.enter_context(socket.create_connection((server.host, server.port)))
            answer = send_raw(server, b"")
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in answer
        wait_until(lambda: b" 200 " in send_raw(server, b"GET /health HTTP/1.0\r\n\r\n"))


def test_sigterm_ends_the_server_after_the_requests_in_progress(file, tmp_path, slow_photo):
    with running(file, log=tmp_path / "log") as server:
        found = []
        busy = threading.Thread(target=lambda: found.append(predict(server, slow_photo)))
        idle = socket.create_connection((server.host, server.port))
        busy.start()
        wait_until(lambda: b"delta_tune_queue_images 1.0" in ask(server, "/metrics").content)
        status, seconds = server.end()
        busy.join()
        idle.close()
    assert (status, found[0].status) == (0, 200)
    assert seconds < 10


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_server_ends_in_seconds_whatever_clients_hold_open(file, tmp_path, number, status):
    with running(file, "--timeout", 2, log=tmp_path / "log") as server:
        with contextlib.ExitStack() as opened:
            for sent in (
                b"",
                b"GET /",
                b"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n",
            ):
                opened.enter_context(socket.create_connection((server.host, server.port))).sendall(sent)
            time.sleep(0.2)
            found, seconds = server.end(number)
        assert found == status
        assert seconds < 8
        assert "Traceback" not in server.log.read_text()


def test_port_in_use_is_told_in_one_sentence(file, server):
    command = [sys.executable, "-c", START, "serve", str(file), "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"delta_tune: The server cannot listen at 127.0.0.1:{server.port} (Address already in use); give another "
        f"--port (0 is any that is free) or --host.\n"
    )


def test_server_that_is_open_to_others_says_so(file, tmp_path):
    server = Server(file, "--host", "0.0.0.0", log=tmp_path / "log")
    try:
        assert "no password" in server.process.stdout.readline()
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()


def test_quiet_server_logs_no_requests(file, tmp_path):
    with running(file, "--quiet", log=tmp_path / "log") as server:
        assert answers(server)
        server.end()
        assert server.log.read_text() == ""


def test_many_clients_at_once_get_their_own_answers(file, tmp_path):
    colours = [tuple(200 * (c == k) for c in range(3)) for k in range(3)]
    photos = [encoded(np.full((20, 20, 3), each, dtype=np.uint8)) for each in colours]
    wrong = []
    with running(file, "--threads", 2, log=tmp_path / "log") as server:

        def client(k):
            for _ in range(20):
                (row,) = predict(server, photos[k % 3]).json["predictions"]
                if row["label"] != ("red", "green", "blue")[k % 3]:
                    wrong.append(row)

        clients = [threading.Thread(target=client, args=(k,)) for k in range(12)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        together = json.loads(ask(server, "/metadata").content)
    assert not wrong
    assert together["classes"]


@pytest.mark.slow
def test_folder_is_served_with_the_answers_of_predict(best, image_folder, tmp_path):
    folder = shutil.copytree(best, tmp_path / "best")
    photos = sorted((image_folder / "test").rglob("*.png"))
    with running(folder, log=tmp_path / "log") as server:
        found = [predict(server, photo.read_bytes()).json["predictions"][0] for photo in photos]
    for row, expected in zip(found, load(best).predict(photos), strict=True):
        assert row["label"] == expected.label
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", -1), ("127.0.0.1", 70_000), ("no.such.host.invalid", 0), ("1.2.3.4", 0)]
)
def test_host_and_port_that_cannot_be_are_refused(host, port):
    with pytest.raises(UserError, match=r"--port must be from 0|cannot listen at"):
        listen(host, port).close()


def test_address_of_ipv6_has_brackets():
    assert address_of("::1", 80) == "[::1]:80"


@pytest.mark.parametrize(("text", "most"), [("50000 100000", 1), ("max 100000", None), ("broken", None), (None, None)])
def test_threads_are_those_that_the_container_may_use(tmp_path, monkeypatch, text, most):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert available_cpus(tmp_path / "cpu.max") == (most or 6)
