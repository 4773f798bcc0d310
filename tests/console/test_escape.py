"""Names in a shell, in Plotly, Markdown and YAML: each reads the name and nothing else."""

import html
import os
import shlex
import subprocess

import pytest
import yaml
from helpers.fuzz import cases
from helpers.names import FILE_NAMES, NAMES
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from delta_tune.cli import launch
from delta_tune.config import as_utf8, visible
from delta_tune.console.escape import (
    distinct_names,
    folder_name,
    html_text,
    markdown_name,
    plotly_text,
    resume_command,
    shell_command,
    yaml_block,
    yaml_string,
)


def read_by_bash(command):
    done = subprocess.run(["bash", "-c", f'printf "%s\\0" {command}'], capture_output=True, check=True, timeout=60)
    assert not done.stderr
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@cases(60)
@given(st.lists(FILE_NAMES, min_size=8, max_size=30))
def test_shell_reads_the_words_of_a_command(words):
    command = shell_command(words)
    assert command == visible(command)
    assert read_by_bash(command) == words


@cases(200)
@given(NAMES)
def test_shell_command_of_any_text_is_one_line(name):
    command = shell_command([name])
    assert command == visible(command)


def test_shell_command_is_the_usual_one_where_it_can_be():
    words = ["python", "launch.py", "--name", "My Photos; touch x"]
    assert shell_command(words) == shlex.join(words)


@cases(30)
@given(FILE_NAMES, FILE_NAMES)
def test_resume_command_names_the_study_and_its_folder(name, out):
    _python, _launch, *flags = read_by_bash(resume_command(name, out))
    assert vars(launch.parser().parse_args(flags)) == {"resume": True, "name": name, "out": out}


def test_resume_command_of_a_plain_name_has_no_quotes():
    assert resume_command("birds-1", "results") == "python launch.py --resume --name birds-1 --out results"


@cases(150)
@given(NAMES)
def test_plotly_reads_a_name_as_text(name):
    text = plotly_text({"layout": [{"title": name}]})["layout"][0]["title"]
    assert "<" not in text
    assert html.unescape(text) == visible(name)


def test_plotly_templates_are_ours():
    figure = {"hovertemplate": "%{x}<br>", "x": ("<br>", 1, None)}
    assert plotly_text(figure) == {"hovertemplate": "%{x}<br>", "x": ["&lt;br&gt;", 1, None]}


def test_html_keeps_lines_and_other_types():
    assert html_text("a\n\tb\x00\udce9") == "a\n\tb\\x00\\xe9"
    assert html_text(7) == 7


@cases(150)
@given(NAMES)
def test_markdown_reads_a_name_as_text_or_code(name):
    (opening, inline, closing) = MarkdownIt("gfm-like", {"linkify": False}).parse(f"Name {markdown_name(name)}.")
    assert (opening.type, closing.type) == ("paragraph_open", "paragraph_close")
    assert {token.type for token in inline.children} <= {"text", "code_inline"}


@pytest.mark.parametrize("name", ["photos", "class 19", "my_photos-2", "timm:test_resnet", "Größe"])
def test_markdown_name_of_letters_is_the_name(name):
    assert markdown_name(name) == name


@pytest.mark.parametrize("name", ["/data/x.y", "a*b", "_a_", "www.evil.example", "a@b.example", ":cat:", "a|b", "#1"])
def test_markdown_name_with_signs_is_code(name):
    assert markdown_name(name) == f"`{name}`"


@pytest.mark.parametrize("name", ["<script>", "[x](http://x)", "a\n\n## Metrics"])
def test_markdown_name_is_not_even_the_text_of_markup(name):
    assert not any(part in markdown_name(name) for part in ("<script", "](", "## "))


@cases(150)
@given(NAMES)
def test_yaml_reads_the_name(name):
    text = yaml_string(name)
    assert yaml.safe_load(f"tags: [a, {text}]\nname: {text}\n") == {"tags": ["a", name], "name": name}


@cases(100)
@given(NAMES, NAMES)
def test_yaml_reads_a_block_of_names(first, second):
    value = {"a": first, "list": [{"b": second, "in": {"c": [first, 0.25, 3], "d": ""}}, {"b": first}], "last": second}
    assert yaml.safe_load(yaml_block(value)) == value


@pytest.mark.parametrize("word", ["delta_uniform", "l2", "l2_sp"])
def test_yaml_word_has_no_quotes(word):
    assert yaml_string(word) == word


@pytest.mark.parametrize("names", [["caf\udce9", "caf\\xe9"], ["a", "b"], ["a\n", "a\\n", "c"]])
def test_distinct_names_are_as_many_as_before(names):
    for escaped in (visible, as_utf8):
        assert len(set(distinct_names(names, escaped))) == len(names)


@cases(100)
@given(NAMES | FILE_NAMES | st.text(st.characters(), min_size=200, max_size=300))
def test_folder_name_can_be_printed_and_made(name):
    made = folder_name(name)
    assert made == visible(made)
    assert "/" not in made
    assert len(os.fsencode(made)) <= 100


def test_folder_name_of_a_usual_folder_is_its_name():
    assert folder_name("My Photos [2024] é") == "My Photos [2024] é"
