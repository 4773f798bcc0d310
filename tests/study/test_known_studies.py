"""What a resume uses without asking, from folders that anybody may have written."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

import optuna
import pytest

from delta_tune.config import UserError
from delta_tune.results.remembered_studies import known_study, remember_study, state_folder
from delta_tune.results.study_record import StudyRecord
from delta_tune.study import begin_session
from delta_tune.study.setup import open_study, prepare_study

SPACE = "def space(trial):\n    trial.suggest_float('lr', 1e-4, 1e-3)\n    return {'regularizer': 'l2'}\n"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """What this user's machine remembers."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def study_settings(image_folder, tiny_weights, place):
    (place / "space.py").write_text(SPACE)
    return {
        **{"data": str(image_folder), "model": "timm:test_resnet", "weights": str(tiny_weights), "image_size": 64},
        **{"out": str(place / "results"), "name": "s", "num_trials": 1, "max_epochs": 1, "final_runs": 0, "verbose": 0},
        "space": str(place / "space.py"),
    }


@pytest.fixture
def settings(image_folder, tiny_weights, tmp_path):
    return study_settings(image_folder, tiny_weights, tmp_path)


@pytest.fixture(scope="module")
def template(image_folder, tiny_weights, tmp_path_factory):
    """A study that was opened once, because reading its data takes most of the time."""
    place = tmp_path_factory.mktemp("template")
    given = study_settings(image_folder, tiny_weights, place)
    open_study(prepare_study(given))
    return place / "results" / "s"


@pytest.fixture
def begun(template, settings, tmp_path):
    """The folder of a study that this user began."""
    folder = tmp_path / "results" / "s"
    shutil.copytree(template, folder)
    change(folder, space=settings["space"], out=settings["out"])
    record = StudyRecord.read(folder)
    assert remember_study(record.study_id, str(folder), record.settings, record.space) is None
    return folder


def resume(folder, **more):
    return prepare_study({"out": str(folder.parent), "name": folder.name, "resume": True, "verbose": 0, **more})


def change(folder, **changed):
    record = json.loads((folder / "study.json").read_text())
    record["settings"] |= changed
    (folder / "study.json").write_text(json.dumps(record))


def forget(folder):
    shutil.rmtree(state_folder())


def test_study_that_this_user_began_goes_on_without_questions(begun, settings):
    assert resume(begun).config.space == settings["space"]


def test_what_is_remembered_is_for_this_user_alone(begun):
    (file,) = state_folder().iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads((begun / "study.json").read_text())["id"] not in file.name


def test_label_map_that_only_the_folder_names_is_asked_for(begun):
    change(begun, label_map="/etc/passwd")
    with pytest.raises(UserError, match="give these flags too: --label-map /etc/passwd"):
        resume(begun)


@pytest.mark.parametrize("written_by_others", [0o020, 0o002])
def test_memory_that_others_may_have_written_does_not_count(begun, written_by_others):
    (file,) = state_folder().iterdir()
    file.chmod(0o600 | written_by_others)
    with pytest.raises(UserError, match="was not begun by you on this machine"):
        resume(begun)


@pytest.mark.parametrize("study_id", ["../../x", "x" * 32, "A" * 32, "", None])
def test_id_of_another_form_is_an_unknown_study(begun, study_id):
    record = json.loads((begun / "study.json").read_text()) | {"id": study_id}
    (begun / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="was not begun by you"):
        resume(begun)


def test_study_of_the_version_before_asks_for_its_places_and_goes_on_with_them(begun, settings):
    record = json.loads((begun / "study.json").read_text())
    del record["id"]
    (begun / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"give these flags too: --data {settings['data']} --weights .* --space "):
        resume(begun)
    named = {name: settings[name] for name in ("data", "weights", "space")}
    assert resume(begun, **named).record.study_id is not None


def test_strangers_space_is_not_executed(begun, tmp_path):
    (begun / "space.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{SPACE}")
    change(begun, space=str(begun / "space.py"))
    with pytest.raises(UserError, match="--space"):
        resume(begun)
    assert not (tmp_path / "ran").exists()


def test_space_whose_text_changed_is_not_executed(begun, settings, tmp_path):
    (tmp_path / "space.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{SPACE}")
    with pytest.raises(UserError, match=r"the search space space\.py changed since"):
        resume(begun)
    with pytest.raises(UserError, match=r"the search space space\.py changed since"):
        resume(begun, space=settings["space"])
    assert not (tmp_path / "ran").exists()


def test_strangers_space_beside_a_remembered_path_is_not_executed(begun, settings, tmp_path):
    """The archive brings the text in study.json and the file at the remembered path."""
    text = f"open({str(tmp_path / 'ran')!r}, 'w')\n{SPACE}"
    (tmp_path / "space.py").write_text(text)
    record = json.loads((begun / "study.json").read_text()) | {"space": text}
    (begun / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="--space"):
        resume(begun)
    assert not (tmp_path / "ran").exists()


def test_shipped_space_is_known_by_its_text_wherever_it_lay(settings, tmp_path, monkeypatch):
    open_study(prepare_study({**settings, "space": "search_spaces/delta.py"}))
    folder = tmp_path / "results" / "s"
    forget(folder)
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "delta.py").write_text("raise SystemExit('a stranger's')")
    monkeypatch.chdir(tmp_path)
    change(folder, space="search_spaces/delta.py")
    resumed = resume(folder, data=settings["data"], weights=settings["weights"])
    assert str(tmp_path) not in str(resumed.config.space)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "/etc"),
        ("data", "s3://strangers-bucket/x"),
        ("weights", "/etc/passwd"),
        ("address", "stranger.example:6379"),
        ("address", "ray://stranger.example:10001"),
        ("start_from", "/etc"),
    ],
)
def test_place_that_only_the_folder_names_is_asked_for(begun, name, value):
    change(begun, **{name: value})
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} {value}"):
        resume(begun)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mlflow", "http://stranger.example:5000"),
        ("mlflow", "sqlite:////tmp/strangers.db"),
        ("storage", "postgresql://stranger.example/db"),
        ("wandb", "project"),
        ("cache", "s3://strangers-bucket/x"),
    ],
)
def test_service_that_only_the_folder_names_is_left_out_and_told(begun, name, value):
    change(begun, **{name: value})
    resumed = resume(begun)
    assert getattr(resumed.config, name) is None
    assert f"study.json also names --{name} {value}, which is not used unless you give it." in resumed.notes


def test_asked_values_cannot_steer_the_terminal(begun):
    change(begun, data="\x1b]0;x\x07; rm -rf ~")
    with pytest.raises(UserError) as raised:
        resume(begun)
    assert "\x1b" not in str(raised.value)


def test_study_goes_on_where_its_folder_lies_and_not_where_it_says(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "copy" / "s")
    copy = resume(tmp_path / "copy" / "s")
    assert copy.folder == tmp_path / "copy" / "s"
    assert any(note.startswith(f"This is a copy of {begun}") for note in copy.notes)


def test_study_that_was_moved_goes_on_as_itself(begun, tmp_path):
    before = json.loads((begun / "study.json").read_text())["id"]
    begun.rename(tmp_path / "moved")
    assert resume(tmp_path / "moved").record.study_id == before


def test_copy_leaves_the_originals_study_in_the_storage_alone(settings, tmp_path):
    storage = str(tmp_path / "optuna.journal")
    study = prepare_study({**settings, "storage": storage})
    open_study(study)
    study.searcher.suggest("first")
    shutil.copytree(study.folder, tmp_path / "copy" / "s")
    with pytest.raises(UserError, match="already has a study 's' with trials that are not this study's"):
        resume(tmp_path / "copy" / "s")
    again = resume(study.folder)
    assert next(iter(again.searcher.studies.values())).study_name == "s"


def test_storage_with_another_study_of_that_name_is_left_alone(begun, tmp_path):
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal"))
    )
    other = optuna.create_study(study_name="s", storage=storage)
    other.tell(other.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
    with pytest.raises(UserError, match="are not this study's"):
        resume(begun, storage=str(tmp_path / "optuna.journal"))
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 1


def test_home_that_cannot_be_written_means_questions_and_no_failure(settings, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    open_study(prepare_study({**settings, "verbose": 1}))
    assert "cannot be remembered outside of its folder" in capsys.readouterr().out
    with pytest.raises(UserError, match="was not begun by you"):
        resume(tmp_path / "results" / "s")


def test_user_without_a_home_is_asked(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr("pathlib.Path.expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert remember_study("0" * 32, "x", {}, "") == "no home"
    assert known_study("0" * 32) is None


@pytest.mark.parametrize("what", ["checkpoints", "checkpoints/00000", "study.log", "journal.jsonl", ".lock", "best"])
def test_links_in_the_folder_are_not_followed(begun, tmp_path, what):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file.json").write_text("{}")
    (begun / what).parent.mkdir(exist_ok=True)
    (begun / what).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=rf"cannot be resumed: {what} is a link"), ExitStack() as session:
        prepare_study({"out": str(begun.parent), "name": "s", "resume": True}, session)
    assert (tmp_path / "precious" / "file.json").exists()


def test_study_is_in_use_until_its_session_ends(begun):
    given = {"out": str(begun.parent), "name": "s", "resume": True, "verbose": 0}
    with ExitStack() as session:
        prepare_study(given, session)
        with pytest.raises(UserError, match="is in use by process"), ExitStack() as other:
            prepare_study(given, other)
    with ExitStack() as session:
        prepare_study(given, session)
    assert not (begun / ".lock").exists()


def test_automatic_names_of_one_second_differ(settings, monkeypatch):
    monkeypatch.setattr(begin_session, "new_name", lambda task: "photos-20260101-000000")
    unnamed = {name: value for name, value in settings.items() if name != "name"}
    with ExitStack() as one, ExitStack() as two:
        names = [prepare_study(unnamed, session).folder.name for session in (one, two)]
    assert names == ["photos-20260101-000000", "photos-20260101-000000-2"]


def test_claimed_study_that_is_refused_leaves_nothing(settings, tmp_path):
    with pytest.raises(UserError, match="no-such-data"), ExitStack() as session:
        prepare_study({**settings, "data": str(tmp_path / "no-such-data")}, session)
    assert not (tmp_path / "results").exists()


def test_what_a_killed_session_was_writing_is_removed(begun):
    left = begun / "checkpoints" / "00000" / ".weights-1.safetensors.0123456789abcdef.partial"
    left.parent.mkdir(parents=True)
    left.touch()
    with ExitStack() as session:
        prepare_study({"out": str(begun.parent), "name": "s", "resume": True, "verbose": 0}, session)
    assert not left.exists()


def test_space_that_is_no_text_is_one_sentence(begun, settings, tmp_path):
    (tmp_path / "space.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"space\.py cannot be read"):
        resume(begun, space=settings["space"])


def test_memory_of_another_form_does_not_count(begun):
    (file,) = state_folder().iterdir()
    file.write_text("[]")
    with pytest.raises(UserError, match="was not begun by you"):
        resume(begun)
