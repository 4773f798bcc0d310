from __future__ import annotations

import shutil
import subprocess
import sys

import onnx
import pytest

from delta_tune.cli import commands
from delta_tune.inference import model_folder
from delta_tune.results.layout import CARD_FILE


def run(capsys, *words):
    status = commands.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def folder(best, tmp_path_factory):
    """A model with a card."""
    place = tmp_path_factory.mktemp("model") / "best"
    shutil.copytree(best, place)
    (place / CARD_FILE).write_text("# A model\n\n## Limits\n\nSome.\n")
    return place


@pytest.mark.slow
def test_reduced_file_is_written_and_its_loss_is_printed_and_told_by_the_card(folder, image_folder, tmp_path, capsys):
    data = tmp_path / "</table><script>|*x*"
    shutil.copytree(image_folder, data)
    file = tmp_path / "small.onnx"
    words = ("--precision", "int8", "--calibration", data, "--output", file, "--force")
    status, out, err = run(capsys, "export", folder, "--format", "onnx", *words)
    assert (status, err) == (0, "")
    assert "accuracy (calibration, 18 images)" in out
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(file).graph.node}
    card = (folder / CARD_FILE).read_text()
    assert card.startswith(
        "# A model\n\n## Limits\n\nSome.\n\n## ONNX in int8\n\n| | float32 | int8 |\n|---|---|---|\n"
    )
    assert "script" not in card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "onnx", "--force"], "--force goes with --precision fp16 or int8"),
        (["--format", "onnx", "--calibration", "."], "--calibration goes with --precision fp16 or int8"),
        (
            ["--format", "torchscript", "--precision", "fp16"],
            "--precision fp16 is for --format onnx, but got torchscript",
        ),
        (["--format", "hf", "--precision", "int8"], "--precision int8 is for --format onnx, but got hf"),
        (["--format", "onnx", "--precision", "int8", "--calibration", "no"], "There is no --calibration no"),
        (["--format", "onnx", "--precision", "int8", "--calibration", "a" * 300], "There is no --calibration aaa"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_read(words, said, capsys, monkeypatch):
    monkeypatch.setattr(model_folder, "read_model", None)
    status, _, err = run(capsys, "export", "nowhere", *words)
    assert status == 2
    assert said in err


def test_missing_packages_are_told_in_a_sentence(folder):
    """In a process of its own: here onnx is imported already."""
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from delta_tune.cli import commands\n"
        "sys.exit(commands.main(sys.argv[1:]))"
    )
    words = ["export", str(folder), "--format", "onnx", "--precision", "int8"]
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ran.returncode == 2
    assert 'pip install "delta-tune[onnx]"' in ran.stderr
    assert "Traceback" not in ran.stderr


def test_model_without_its_study_asks_for_images(folder, tmp_path, capsys):
    words = ("--precision", "int8", "--output", tmp_path / "small.onnx")
    status, _, err = run(capsys, "export", folder, "--format", "onnx", *words)
    assert status == 2
    assert "give --calibration FOLDER, a folder of images" in err
    assert list(tmp_path.iterdir()) == []
