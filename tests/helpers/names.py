"""Names that files, classes and choices may have: all of Unicode, bytes that are none, and other languages' markup."""

from __future__ import annotations

import os

from hypothesis import strategies as st

MEANINGFUL = (
    *(
        "[/strong]",
        "[bold]",
        "[link=http://evil.example]",
        ":smile:",
        "\x1b]0;title\x07",
        "\x1b[2J",
        "\x9b2J",
        "\n",
        "\r",
    ),
    *(
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\x85",
        "\x00",
        "\x7f",
        "\ud800",
        "\udce9",
        "👩\u200d🔬",
        "é",
        "i̇",
    ),
    *(
        "<script>alert(1)</script>",
        '<img src="http://evil.example/x">',
        "</script>",
        "<b>",
        "&lt;",
        "&#60;",
        "<!--",
        "]]>",
    ),
    *('<a href="http://evil.example">', "%{x}", "<extra>", "$x$", "<span style='fill:url(http://evil.example)'>"),
    *(
        "[x](http://evil.example)",
        "![x](http://evil.example/x)",
        "www.evil.example",
        "http://evil.example",
        "a@evil.example",
    ),
    *(
        "## Title",
        "```",
        "`",
        "| a | b |",
        "---",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "null",
        "yes",
        "1e3",
        ": ",
        "#",
        "- x",
        "*a*",
        "_a_",
    ),
    *("; rm -rf y", "$(touch x)", "'", '"', "\\", "!!", " ", "-x", "~", "\t", "\\xe9", "\\n"),
)
NAMES = st.lists(
    st.one_of(st.sampled_from(MEANINGFUL), st.text(st.characters(), max_size=4)), min_size=1, max_size=4
).map("".join)
FILE_NAMES = st.binary(min_size=1, max_size=12).map(
    lambda b: os.fsdecode(b.replace(b"\0", b"").replace(b"/", b"") or b"x")
)
"""As `os.listdir` gives them, bytes that are not UTF-8 included."""
