from __future__ import annotations

import optuna
import pytest

from delta_tune.config import UserError
from delta_tune.search.optuna_storage import create_study, open_storage, remove_stale_studies


@pytest.fixture(params=["sqlite:///{}/studies.db", "{}/studies.journal"])
def address(request, tmp_path):
    return request.param.format(tmp_path)


def with_a_trial(storage, name, study_id="1"):
    study = create_study(storage, name, study_id)
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)


def test_what_was_stored_is_read_by_another_process_of_optuna(address):
    with_a_trial(open_storage(address), "mine")
    (trial,) = optuna.load_study(study_name="mine", storage=open_storage(address)).trials
    assert trial.value == 1.0


def test_another_study_with_trials_is_not_touched(address):
    storage = open_storage(address)
    with_a_trial(storage, "mine-delta")
    with pytest.raises(UserError, match="mine-delta"):
        remove_stale_studies(storage, ["mine-l2", "mine-delta"], "2")
    assert len(optuna.load_study(study_name="mine-delta", storage=storage).trials) == 1


def test_a_resume_tells_its_trials_again_and_leaves_others_alone(address):
    storage = open_storage(address)
    with_a_trial(storage, "mine")
    with_a_trial(storage, "other")
    remove_stale_studies(storage, ["mine"], "1")
    assert optuna.get_all_study_names(storage) == ["other"]


def test_a_study_that_never_began_makes_room(address):
    storage = open_storage(address)
    optuna.create_study(storage=storage, study_name="mine")
    remove_stale_studies(storage, ["mine"], "1")
    assert optuna.get_all_study_names(storage) == []


def test_a_study_that_another_process_is_about_to_start_is_not_touched(address):
    storage = open_storage(address)
    create_study(storage, "mine", "1")
    with pytest.raises(UserError, match=r"'mine', which process .* is about to start"):
        remove_stale_studies(storage, ["mine"], "2")
    assert optuna.get_all_study_names(storage) == ["mine"]


@pytest.mark.parametrize("study_id", [None, "2"])
def test_a_study_without_an_id_is_nobodys_to_remove(address, study_id):
    storage = open_storage(address)
    study = optuna.create_study(storage=storage, study_name="mine")
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 1.0)
    with pytest.raises(UserError, match="are not this study's"):
        remove_stale_studies(storage, ["mine"], study_id)


def test_of_two_that_create_a_study_at_once_one_is_told(address):
    storage = open_storage(address)
    create_study(storage, "mine", "1")
    with pytest.raises(UserError, match="has just been started; give another --name"):
        create_study(storage, "mine", "2")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:secret@host/db",
        "postgresql://host/db?user=me&password=secret",
        "mysql+pymysql://host/db?passwd=secret",
    ],
)
def test_password_is_refused_and_not_repeated(address):
    with pytest.raises(UserError, match=r"holds a password.*PGPASSWORD") as refused:
        open_storage(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["nosql://host/db", "sqlite:////no/such/folder/studies.db", "/no/such/folder/j.log"]
)
def test_storage_that_cannot_be_opened_is_one_sentence(address):
    with pytest.raises(UserError, match="--storage") as raised:
        open_storage(address)
    assert "\n" not in str(raised.value)
