"""What the documents say: their commands are ones that the programs take, their messages ones that they give."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from delta_tune import cli, tools

ROOT = Path(cli.__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHARED = ROOT.parent / "shared"


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
        parser = cli.parser() if program == "launch.py" else tools.parser()
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
    sources = [file.read_text() for file in (ROOT / "delta_tune").glob("*.py")]
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


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.slow
def test_flowers_tutorial_runs_up_to_its_confirmation(tmp_path):
    """Its commands in their order, on the photos that lie beside this checkout, with a small budget.

    The confirmation and what follows it take too long for a test.
    """
    lines = "".join(blocks(ROOT / "docs" / "flowers.md", "sh")).replace("\\\n", " ").splitlines()
    before = list(itertools.takewhile(lambda line: "--confirm" not in line, lines))
    assert len(before) >= 4
    for line in before:
        command = line.partition("  #")[0].replace("PHOTOS", str(SHARED / "data" / "flowers17"))
        command = command.replace("mobilenet_v2.pth", str(SHARED / "weights" / "mobilenet_v2.pth"))
        command = command.replace("python launch.py", f"python {ROOT / 'launch.py'}")
        command = re.sub(r"--num-trials \d+", "--num-trials 5", re.sub(r"--max-epochs \d+", "--max-epochs 1", command))
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
