"""Names from data and users, escaped for what they are written into: a shell, HTML, Plotly, Markdown, YAML.

Terminals and error messages take `delta_tune.config.visible`, tables `as_utf8`.
"""

from __future__ import annotations

import html
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from delta_tune.config import visible

TEMPLATES = ("hovertemplate", "texttemplate")
"""Keys of Plotly's figures whose text is ours."""
PLAIN_MARKDOWN = re.compile(r"\w(?:[\w ,:+-]*\w)?")
MARKED = re.compile(r"(?<![^\W_])_|_(?![^\W_])|:.*:")
"""Emphasis and smileys."""
MARKUP = re.compile(r"<|#(?=[# ])|\](?=[(\[])")
"""HTML, headings and links, which are to be none even for a program that knows no code spans."""
SHELL_AS_IS = frozenset(range(32, 127)) - frozenset(b"'\\")
"""Bytes that need no escape between $' and '."""
YAML_AS_IS = frozenset(range(32, 127)) - frozenset(b'"\\')
YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
"""Words that are no strings."""
FOLDER_NAME_BYTES = 100


def shell_command(words: Iterable[str]) -> str:
    """A command line that a shell splits into these words again, on one line without control characters."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if visible(word) == word:
        return shlex.quote(word)
    try:
        content = os.fsencode(word)
    except UnicodeEncodeError:  # no file has that name
        content = word.encode("utf-8", "backslashreplace")
    # Bash, zsh and POSIX 2024 read $'\303\244'
    return "$'" + "".join(chr(b) if b in SHELL_AS_IS else f"\\{b:03o}" for b in content) + "'"


def resume_command(name: str, out: str) -> str:
    """The command that carries on the study `name` in the folder or at the address `out`."""
    return shell_command(["python", "launch.py", "--resume", *flag("--name", name), *flag("--out", out)])


def flag(name: str, value: str) -> list[str]:
    """The words of a flag with a value; one word if the value would be taken for a flag itself."""
    return [f"{name}={value}"] if value.startswith("-") else [name, value]


def html_text(value: Any) -> Any:
    """What a template prints, without unseen characters; its angle brackets are left to Jinja's autoescape."""
    return visible(value, keep="\n\t") if type(value) is str else value


def plotly_text(value: Any) -> Any:
    """A figure, or a part of it, whose texts are shown as they are: Plotly reads `<a href=…>` and `&lt;` in them."""
    if isinstance(value, dict):
        return {key: each if key in TEMPLATES else plotly_text(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plotly_text(each) for each in value]
    return html.escape(visible(value), quote=False) if isinstance(value, str) else value


def distinct_names(names: Sequence[str], escaped: Callable[[str], str]) -> list[str]:
    """`names`, escaped, and numbered where that makes two of them equal: a name may read like another one's escape."""
    found = [escaped(name) for name in names]
    if len(set(found)) == len(found):
        return found
    return [f"{name} ({index})" for index, name in enumerate(found)]


def markdown_name(name: str) -> str:
    """A name as it is, or as code if Markdown might read something into it: no link, no HTML, no table, one line."""
    name = visible(name)
    if PLAIN_MARKDOWN.fullmatch(name) and not MARKED.search(name):
        return name
    name = MARKUP.sub(lambda found: f"\\x{ord(found[0]):02x}", name)
    ticks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    space = " " if name.startswith(("`", " ")) or name.endswith(("`", " ")) or not name else ""
    return f"{ticks}{space}{name}{space}{ticks}"


def yaml_string(text: str) -> str:
    """A string of YAML that is read as `text`: a plain word, or in quotes and ASCII."""
    if re.fullmatch("[a-z][a-z0-9_-]*", text) and text not in YAML_WORDS:
        return text
    return '"' + "".join(chr(c) if c in YAML_AS_IS else f"\\U{c:08X}" for c in map(ord, text)) + '"'


def yaml_block(value: Mapping[str, Any], indent: int = 0) -> str:
    """Lines of YAML that are read as `value`, by programs for YAML 1.1 and for 1.2.

    Args:
        value: of mappings, lists, strings and numbers; its keys are plain words.
        indent: blanks before each line.
    """
    return "".join(f"{' ' * indent}{key}:{_yaml_value(each, indent)}" for key, each in value.items())


def _yaml_value(value: Any, indent: int) -> str:
    if isinstance(value, Mapping):
        return f"\n{yaml_block(value, indent + 2)}"
    if isinstance(value, list):
        # A mapping's first key stands behind its dash
        items = (_yaml_value(each, indent).lstrip() for each in value)
        return "\n" + "".join(f"{' ' * indent}- {item}" for item in items)
    return f" {yaml_string(value) if isinstance(value, str) else repr(value)}\n"


def folder_name(name: str) -> str:
    """`name` as the beginning of a new folder's name: printable, of at most 100 bytes."""
    printable = "".join(c if visible(c) == c and c not in "/\\" else "_" for c in name)
    return printable.encode()[:FOLDER_NAME_BYTES].decode(errors="ignore")
