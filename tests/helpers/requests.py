"""Requests as clients send them, and as no client should."""

from __future__ import annotations

import http.client
import io
import json
import socket

from PIL import Image

BOUNDARY = "-----boundary"


def encoded(pixels, format="PNG", **options):
    """Pixels as an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def form(*parts, end=True):
    """Body and headers of a form. Each part: (field, file name or None, content)."""
    body = b""
    for field, name, content in parts:
        told = b'form-data; name="%s"' % field.encode()
        if name is not None:
            told += b'; filename="%s"' % (name if isinstance(name, bytes) else name.encode())
        body += b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), told, content)
    body += b"--%s--\r\n" % BOUNDARY.encode() if end else b""
    return body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Answer:
    """Status, headers and content."""

    def __init__(self, response):
        self.status, self.headers, self.content = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.content)


def ask(server, path, method="GET", body=None, headers=None):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def predict(server, *parts, query=""):
    """POST a form to /predict; a part that is bytes is a file named photo.png."""
    parts = [("images", "photo.png", part) if isinstance(part, bytes) else part for part in parts]
    return ask(server, f"/predict{query}", "POST", *form(*parts))


def send_raw(server, content, *, half_close=False, timeout=30):
    """Send bytes as they are; what comes back until the server closes the connection."""
    with socket.create_connection((server.host, server.port), timeout=timeout) as connection:
        try:
            connection.sendall(content)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            found = b""
            while chunk := connection.recv(2**16):
                found += chunk
        except (ConnectionResetError, BrokenPipeError):
            return b""
        return found
