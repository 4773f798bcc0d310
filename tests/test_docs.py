"""The documentation: programs accept its commands, links lead somewhere, its Python runs, its messages exist."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import delta_tune
from delta_tune.cli import commands as subcommands
from delta_tune.cli import launch

ROOT = Path(delta_tune.__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
OTHER_PROGRAMS = {"CONTRIBUTING.md", "cluster.md", "experiments.md", "performance.md", "scale.md"}
"""Documents that name flags of Ray, pip, pytest and the benchmarks."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document, language):
    return [text for name, text in BLOCK.findall(document.read_text()) if name == language]


def commands(document):
    """Every `python launch.py …` and `python -m delta_tune …` of a document, in blocks and in backticks."""
    text = document.read_text().replace("\\\n", " ")
    lines = [line.partition("  #")[0] for language in ("sh", "console") for block in blocks(document, language)
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", re.sub(BLOCK, "", text))]
    matches = [
        re.search(r"python (launch\.py|-m delta_tune)((?: [^;&|>]+)?)", line)
        for line in (*lines, *inline)
        if "…" not in line
    ]
    return [(match[1], shlex.split(match[2])) for match in matches if match]


@each_document
def test_commands_are_ones_that_the_programs_take(document):
    for program, words in commands(document):
        words = ["2" if word == "N" else word for word in words]
        parser = launch.parser() if program == "launch.py" else subcommands.parser()
        if words and words != ["--help"]:
            parser.parse_args(words)  # exits, and so fails the test, if it does not accept them


def test_commands_are_found():
    assert sum(len(commands(document)) for document in DOCUMENTS) > 40


def anchors(document):
    """The fragments that a document's headings can be linked by, on GitHub and on the site."""
    headings = re.findall(r"^#+ (.*)$", re.sub(BLOCK, "", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(BLOCK, "", document.read_text())):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = document.parent / target if target else document
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_site_lists_every_page():
    """A page outside of the navigation can be found by a link only."""

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for child in (entry.values() if isinstance(entry, dict) else entry) for page in pages(child)]

    text = (ROOT / "mkdocs.yml").read_text()
    assert sorted(pages(yaml.safe_load(text)["nav"])) == sorted(
        str(document.relative_to(DOCS)) for document in DOCS.rglob("*.md")
    )


@each_document
def test_python_blocks_are_python(document):
    for text in blocks(document, "python"):
        compile(text, document.name, "exec")


def test_python_reference_has_every_public_name():
    names = set(re.findall(r"^::: delta_tune\.(\w+)", (DOCS / "reference" / "python.md").read_text(), re.MULTILINE))
    assert names == set(delta_tune.__all__)


def test_messages_of_the_index_are_given_somewhere():
    sources = [file.read_text() for file in (ROOT / "delta_tune").rglob("*.py")]
    # Strings that are continued on the next line are one
    spoken = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    table = re.findall(r"^\| (`.*?) \|", (DOCS / "reference" / "errors.md").read_text(), re.MULTILINE)
    messages = [message for cell in table for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 20
    for message in messages:
        pattern = r"[^\n]*?".join(re.escape(part) for part in re.split(r"\s*…\s*", message) if part)
        assert re.search(pattern, spoken), message


@pytest.fixture
def reader_folder(image_folder, tiny_weights, tmp_path, monkeypatch, ray_cluster):
    """A folder with what the reader of the documentation has; returns the real values of its placeholders."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((image_folder / "test" / "red").iterdir()), tmp_path / "a.jpg")
    shutil.copy(next((image_folder / "test" / "blue").iterdir()), tmp_path / "b.png")
    return {
        '"PHOTOS"': repr(str(image_folder)),
        '"timm:tf_efficientnet_lite0"': '"timm:test_resnet"',
        '"demo"': repr(str(tiny_weights)),
        "num_trials=16": "num_trials=2, max_epochs=2, image_size=64, gpus_per_trial=0, final_runs=2, "
        "max_concurrent_trials=1",
        "image_size=128": "image_size=64",
    }


@pytest.mark.slow
def test_python_of_readme_and_guides_runs(reader_folder, capsys):
    run = 0
    for document in (README, *(DOCS / "how-to" / f"{name}.md" for name in ("python", "predict", "results"))):
        for text in blocks(document, "python"):
            for name, value in reader_folder.items():
                text = text.replace(name, value)
            text = text.replace("results/NAME", str(next(iter(Path("results").glob("*-*")), "results/NAME")))
            exec(compile(text, document.name, "exec"), {})
            run += 1
    assert run == 5
    assert "completed" in capsys.readouterr().out


def run(line, cwd):
    """Run a shell line with the Python of this test and the program of this checkout."""
    line = re.sub(r"^python launch\.py", f"python {ROOT / 'launch.py'}", line.partition("  #")[0])
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=580, check=False)


@pytest.mark.slow
def test_commands_of_readme_and_guides_run_one_after_another(reader_folder, image_folder, tiny_weights, tmp_path):
    """From the reader's own photos to a resume, with a small budget."""
    values = {
        "PHOTOS": str(image_folder),
        "timm:tf_efficientnet_lite0 --weights demo": f"timm:test_resnet --weights {tiny_weights}",
        "results/NAME": "results/photos",
        "results/OTHER": "results/photos",
        "--precision int8": "--precision int8 --force",  # of so few images, one is more than a point
        "--name photos": "--name photos --num-trials 2 --max-epochs 2 --image-size 64 --final-runs 2 "
        "--max-concurrent-trials 1",
    }
    guides = [DOCS / "how-to" / f"{name}.md" for name in ("results", "predict", "export", "resume")]
    shell = "".join(text for document in (README, *guides) for text in blocks(document, "sh"))
    shell += "".join(text for text in blocks(DOCS / "how-to" / "compare-methods.md", "sh") if "compare" in text)
    lines = [line.partition("  #")[0] for line in shell.splitlines()]
    mine = [line for line in lines if re.match(r"python (?!.*…)", line)]
    assert len(mine) == 10
    for name, value in values.items():
        mine = [line if "--resume" in line else line.replace(name, value) for line in mine]
    for line in dict.fromkeys(line.rstrip() for line in mine):
        done = run(line, tmp_path)
        assert done.returncode == 0, line + done.stdout + done.stderr
    left = {path.name for path in (tmp_path / "results" / "photos").iterdir()}
    reference = (DOCS / "reference" / "files.md").read_text()
    table, _, _ = reference.partition("\n## ")
    named = {name.partition("/")[0] for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)}
    assert len(named) > 9
    # A study that ended has no journal and no lock; this one has no runs of --confirm and no trial with attention, and
    # nobody has asked for nearest training images
    assert named - left <= {"journal.jsonl", ".lock", "confirm", "attention", "embeddings.safetensors"}


def test_mistake_is_answered_as_the_reference_says(tmp_path):
    (block,) = blocks(DOCS / "reference" / "errors.md", "console")
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


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name not in OTHER_PROGRAMS],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_flags_that_are_named_alone_exist(document):
    named = re.findall(r"`(--[^`]+)`", re.sub(BLOCK, "", document.read_text()))
    flags = {flag for code in named for flag in FLAG.findall(code)}
    assert flags <= set(options(launch.parser())) | set(options(subcommands.parser()))


@pytest.mark.slow
def test_flowers_tutorial_runs_to_its_end(real_data, tmp_path):
    """Its commands in their order, on a few real photos and with a small budget."""
    for split, count in (("train", 15), ("test", 5)):
        for kind in ("c1", "c2", "c3"):
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
            for file in sorted((real_data / "data" / "flowers17" / split / kind).iterdir())[:count]:
                shutil.copy(file, tmp_path / "photos" / split / kind)
    values = {
        "PHOTOS": str(tmp_path / "photos"),
        "mobilenet_v2.pth": str(real_data / "weights" / "mobilenet_v2.pth"),
        "--image-size 128": "--image-size 64",
        "--num-trials 16": "--num-trials 7 --max-epochs 1",
        "--confirm 5": "--confirm 2 --final-runs 2",
    }
    lines = "".join(blocks(DOCS / "tutorial" / "flowers.md", "sh")).replace("\\\n", " ").splitlines()
    assert len(lines) == 6
    for line in lines:
        for name, value in values.items():
            line = line.replace(name, value)
        done = run(line, tmp_path)
        assert done.returncode == 0, line + done.stdout + done.stderr
    assert "Confirmed: " in (tmp_path / "results" / "confirmed" / "report.html").read_text()
