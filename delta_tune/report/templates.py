"""The templates of pages: what they print is escaped, and each page is one file."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from delta_tune.console.escape import html_text
from delta_tune.console.format import format_duration


def page_templates() -> jinja2.Environment:
    """The templates beside this module, with the filters `data_uri`, `clock`, `when`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=html_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": data_uri, "clock": format_duration, "when": format_time}
    return environment


def data_uri(image: bytes) -> str:
    """An image as a data URI."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def format_time(moment: str) -> str:
    """A time from `study.json`, readable."""
    return moment.replace("T", " ").replace("+00:00", " UTC")
