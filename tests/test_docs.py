"""What the documents say: their commands are ones that the programs take, their messages ones that they give."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import delta_tune
from delta_tune.cli import commands as subcommands
from delta_tune.cli import launch

ROOT = Path(delta_tune.__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SHARED = ROOT.parent / "shared"
README = (ROOT / "README.md").read_text()


def blocks(document, kind):
    return [text for found, text in BLOCK.findall(document.read_text()) if found == kind]


def commands(document):
    """Each `python launch.py …` and `python -m delta_tune …` of a document, in blocks and in backticks."""
    text = document.read_text().replace("\\\n", " ")
    lines = [line.partition("  #")[0] for kind in ("sh", "console") for each in blocks(document, kind)
             for line in each.replace("\\\n", " ").splitlines()]  # fmt: skip
    inline = [each.replace("\n", " ") for each in re.findall(r"`([^`]+)`", re.sub(BLOCK, "", text))]
    found = [
        re.search(r"python (launch\.py|-m delta_tune)((?: [^;&|>]+)?)", line)
        for line in (*lines, *inline)
        if "…" not in line
    ]
    return [(match[1], shlex.split(match[2])) for match in found if match]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_commands_are_ones_that_the_programs_take(document):
    for program, words in commands(document):
        words = ["1" if word == "N" else word for word in words]
        parser = launch.parser() if program == "launch.py" else subcommands.parser()
        if words != ["--help"]:
            parser.parse_args(words)  # ends the process, and so the test, where it does not take them


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each.name)
def test_python_blocks_are_python(document):
    for text in blocks(document, "python"):
        compile(text, document.name, "exec")


def test_messages_of_the_index_are_given_somewhere():
    sources = [file.read_text() for file in (ROOT / "delta_tune").rglob("*.py")]
    # Strings that are continued on the next line are one
    spoken = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    messages = [each for cell in table for each in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 20
    for message in messages:
        pattern = r"[^\n]*?".join(re.escape(part) for part in re.split(r"\s*…\s*", message) if part)
        assert re.search(pattern, spoken), message


@pytest.fixture
def place(image_folder, tiny_weights, tmp_path, monkeypatch, ray_cluster):
    """A folder with what the README's reader has; what its names stand for."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((image_folder / "test" / "red").iterdir()), tmp_path / "a.jpg")
    shutil.copy(next((image_folder / "test" / "blue").iterdir()), tmp_path / "b.png")
    return {
        '"PHOTOS"': repr(str(image_folder)),
        '"timm:tf_efficientnet_lite0"': '"timm:test_resnet"',
        '"demo"': repr(str(tiny_weights)),
        "num_trials=16": "num_trials=2, max_epochs=2, image_size=64, gpus_per_trial=0",
        "image_size=128": "image_size=64",
    }


@pytest.mark.slow
def test_readmes_python_runs(place, capsys):
    run = 0
    for text in blocks(ROOT / "README.md", "python"):
        for name, stands_for in place.items():
            text = text.replace(name, stands_for)
        text = text.replace("results/NAME", str(next(iter(Path("results").glob("*-*")), "results/NAME")))
        if "PHOTOS" not in text and "def space" not in text:
            exec(compile(text, "README.md", "exec"), {})
            run += 1
    assert run >= 3
    assert "completed" in capsys.readouterr().out


def run(line, cwd):
    """A shell line, with the Python of this test and the program of this checkout."""
    line = re.sub(r"^python launch\.py", f"python {ROOT / 'launch.py'}", line.partition("  #")[0])
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.slow
def test_readmes_commands_run_one_after_another(place, image_folder, tmp_path):
    """From one's own photos to a resume, with a small budget; what needs another program's server is left out."""
    stands_for = {
        "PHOTOS": str(image_folder),
        "results/NAME": "results/photos",
        "results/OTHER": "results/photos",
        "--name photos": "--name photos --num-trials 2 --max-epochs 2 --image-size 64",
    }
    lines = [line.partition("  #")[0] for line in "".join(blocks(ROOT / "README.md", "sh")).splitlines()]
    mine = [line for line in lines if re.match(r"python (?!.*…)", line)]
    assert len(mine) == 8
    for line in mine:
        resumes = "--resume" in line
        for name, there in stands_for.items():
            line = line if resumes else line.replace(name, there)
        done = run(line, tmp_path)
        assert done.returncode == 0, line + done.stdout + done.stderr
    left = {path.name for path in (tmp_path / "results" / "photos").iterdir()}
    (table,) = re.findall(r"^\| file \| content \|\n\|---\|---\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    named = {name.rstrip("/") for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named - left <= {"journal.jsonl", "confirm"}


def test_readmes_mistake_is_answered_as_it_says(tmp_path):
    (block,) = blocks(ROOT / "README.md", "console")
    command, _, answer = block.removeprefix("$ ").partition("\n")
    done = run(command, tmp_path)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).split() == answer.split()


def options(parser):
    """The flags of a parser and of its commands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)


@pytest.mark.parametrize("name", ["README", "docs/howto", "docs/flowers", "docs/report", "docs/search", "docs/errors"])
def test_flags_that_are_named_alone_exist(name):
    text = (ROOT / f"{name}.md").read_text()
    flags = {flag for each in re.findall(r"`(--[^`]+)`", re.sub(BLOCK, "", text)) for flag in FLAG.findall(each)}
    assert flags <= set(options(launch.parser())) | set(options(subcommands.parser()))


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.slow
def test_flowers_tutorial_runs_to_its_end(tmp_path):
    """Its commands in their order, on the photos that lie beside this checkout, with a small budget."""
    stands_for = {
        "PHOTOS": str(SHARED / "data" / "flowers17"),
        "mobilenet_v2.pth": str(SHARED / "weights" / "mobilenet_v2.pth"),
        "--num-trials 16": "--num-trials 5",
        "--max-epochs 12": "--max-epochs 1",
        "--confirm 5": "--confirm 2 --train-per-class 10",
    }
    lines = "".join(blocks(ROOT / "docs" / "flowers.md", "sh")).replace("\\\n", " ").splitlines()
    assert len(lines) == 6
    for line in lines:
        for name, there in stands_for.items():
            line = line.replace(name, there)
        done = run(line, tmp_path)
        assert done.returncode == 0, line + done.stdout + done.stderr
    assert "Confirmed: " in (tmp_path / "results" / "confirmed" / "report.html").read_text()
