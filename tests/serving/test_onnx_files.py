"""Which file is served for what a user names, and when it is exported anew."""

import subprocess

import pytest

from delta_tune.config import UserError
from delta_tune.serving import onnx_files
from delta_tune.serving.onnx_files import onnx_file


@pytest.fixture
def study(tmp_path):
    best = tmp_path / "study" / "best"
    best.mkdir(parents=True)
    (best / "config.json").write_text("{}")
    (best / "model.safetensors").write_bytes(b"weights")
    return best.parent


@pytest.fixture(autouse=True)
def exports(monkeypatch, tmp_path):
    """The commands that were run; they write a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    done = []

    def run(command, **_):
        done.append(command[1:])
        with open(command[command.index("--output") + 1], "wb") as file:
            file.write(b"ONNX")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return done


def find(place, tmp_path, flip=False):
    return onnx_file(str(place), flip=flip, new_folder=lambda: str(tmp_path))


def test_file_is_taken_as_it_is(tmp_path, exports):
    (tmp_path / "a.onnx").touch()
    assert find(tmp_path / "a.onnx", tmp_path) == tmp_path / "a.onnx"
    assert not exports


@pytest.mark.parametrize("inner", ["", "best"])
def test_folder_is_exported_once(study, tmp_path, exports, inner):
    file = find(study / inner, tmp_path)
    assert find(study / inner, tmp_path) == file
    assert exports == [["-m", "delta_tune", "export", str(study / "best"), "--format", "onnx", "--output", str(file)]]
    assert file.is_relative_to(study / "best")


def test_other_weights_are_exported_anew_and_the_old_file_removed(study, tmp_path, exports):
    old = find(study, tmp_path)
    (study / "best" / "model.safetensors").write_bytes(b"better weights")
    new = find(study, tmp_path)
    assert (old.exists(), new.exists(), len(exports)) == (False, True, 2)


@pytest.mark.parametrize("name", ["config.json", "model-2.safetensors"])
def test_everything_that_prediction_needs_counts(study, tmp_path, exports, name):
    find(study, tmp_path)
    (study / "best" / name).write_text("[]")
    find(study, tmp_path)
    assert len(exports) == 2


def test_mirror_images_have_a_file_of_their_own(study, tmp_path, exports):
    assert find(study, tmp_path) != find(study, tmp_path, flip=True)
    assert exports[1][-1] == "--flip"


def test_file_of_a_folder_that_cannot_be_written_to_is_kept_in_the_users_cache(study, tmp_path, monkeypatch, exports):
    real = type(study).mkdir

    def mkdir(path, *arguments, **keywords):
        if path.is_relative_to(study):
            raise PermissionError
        real(path, *arguments, **keywords)

    monkeypatch.setattr(type(study), "mkdir", mkdir)
    file = find(study, tmp_path)
    assert find(study, tmp_path) == file
    assert file.is_relative_to(tmp_path / "cache")
    assert len(exports) == 1


def test_user_without_a_home_keeps_the_file_beside_the_model(study, tmp_path, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", home)
    assert find(study, tmp_path).is_relative_to(study)


def test_address_is_exported_into_a_scratch_folder(tmp_path, exports):
    assert find("s3://bucket/photos", tmp_path).parent == tmp_path
    assert exports[0][3] == "s3://bucket/photos"


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"There is no model in .*; give the folder of a study, its best/, or a file"):
        find(tmp_path, tmp_path)


def test_flip_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="--flip is decided when a file is exported"):
        find(tmp_path / "a.onnx", tmp_path, flip=True)


def test_export_that_fails_says_why_and_leaves_no_file(study, tmp_path, monkeypatch):
    said = "Warning: x\ndelta_tune: --format onnx needs the packages onnx; install them.\n"
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2, "", said))
    with pytest.raises(UserError, match="could not be exported: --format onnx needs the packages onnx; install them"):
        find(study, tmp_path)
    assert not list(study.rglob(f"*{onnx_files.SUFFIX}"))
