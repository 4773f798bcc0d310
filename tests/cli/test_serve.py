"""`python -m delta_tune serve`: mistakes are answered before anything is read."""

import sys

import pytest
from helpers.served import mean_colour_model

from delta_tune.cli.commands import main


@pytest.fixture
def file(tmp_path):
    return str(mean_colour_model(tmp_path / "tiny.onnx"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--port", "70000"], "--port must be from 0 to 65535, but got 70000."),
        (["--min-confidence", "2"], "--min-confidence must be a number from 0 to 1, or auto, but got 2."),
        (["--max-image-size", "much"], "--max-image-size must be like 500MB, 8GB or 8GiB, but got 'much'."),
        (["--max-image-size", "0MiB"], "--max-image-size must be more than 0, but got 0MiB."),
        (["--threads", "0"], "--threads must be more than 0, but got 0."),
        (["--max-pixels", "1000"], "--max-pixels must be at most 120, but got 1000."),
        (["--max-pixels", "nan"], "--max-pixels must be more than 0, but got nan."),
        (["--max-queue", "3"], "A request of --max-images 64 would never fit into --max-queue 3; give a longer queue"),
        (["--timeout", "nan"], "--timeout must be more than 0, but got nan."),
        (["--batch-wait", "-1"], "--batch-wait must be at least 0, but got -1."),
        (["--flip"], "--flip is decided when a file is exported"),
    ],
)
def test_flags_that_cannot_be_are_told(file, capsys, flags, said):
    assert main(["serve", file, "--port", "0", *flags]) == 2
    assert said in capsys.readouterr().err


def test_missing_packages_are_told(file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else name)
    assert main(["serve", file]) == 2
    assert (
        'serve needs the packages uvicorn; install them with pip install "delta-tune[serve]"' in capsys.readouterr().err
    )


def test_help_needs_no_package_of_the_server(capsys, monkeypatch):
    for name in ("fastapi", "uvicorn", "onnxruntime", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "There is no password" in " ".join(capsys.readouterr().out.split())
