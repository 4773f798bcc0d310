"""`report`, `compare` and `--start-from` of a study that a stranger changed: a result, or one sentence."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzz import cases
from helpers.hostile import MISSING, VALUES, changed, columns, paths
from helpers.studies import FINAL_MODEL, HELD_OUT, add_trial, attention_file, study_json, tables_in
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.config import UserError
from delta_tune.report import page
from delta_tune.report.page import write_report
from delta_tune.results.comparison import compare_studies
from delta_tune.results.layout import ATTENTION_FILE, HELD_OUT_FILE, STUDY_FILE
from delta_tune.spaces.warm_start import best_configurations

CONFIRMATION = {
    "metric": "val_accuracy",
    "scores": {"delta": [0.9, 0.8], "l2": [0.7, 0.8]},
    "trials": {"delta": 0, "l2": 1},
    "sentences": ["Confirmed: so."],
}
TIME_USE = {"total": 9.0, "training": 5.0, "validation": 1.0, "inside": 1.0, "between": 1.0, "tail": 1.0}
TABLES = ("trials.parquet", "epochs.parquet", str(ATTENTION_FILE), HELD_OUT_FILE)
SUSPECT = {"image": "a.jpg", "true": "blue", "predicted": "green", "probability": 0.9, "probability_of_true": 0.1}
SUSPECT |= {"suspect": 1, "thumbnail": b"\xff\xd8\xff"}
quick = cases(30)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "study"
    folder.mkdir()
    own = {"winner": 0, "spent_seconds": 3.0, "spent_seconds_at": 1.7e9, "time_use": TIME_USE}
    own |= {"model": FINAL_MODEL, "held_out": HELD_OUT, "race": ["Race: so."]}
    study_json(folder, confirmation=CONFIRMATION, start_from=[{"regularizer": "l2", "lr": 0.1}], **own)
    content = json.loads((folder / STUDY_FILE).read_text())
    content["test_scorings"][0]["model"] = FINAL_MODEL
    (folder / STUDY_FILE).write_text(json.dumps(content))
    pq.write_table(pa.table({name: [value, value] for name, value in SUSPECT.items()}), folder / HELD_OUT_FILE)
    tables = tables_in(folder)
    for number, (method, state) in enumerate([("delta", "completed"), ("l2", "completed"), ("l2", "pruned")]):
        add_trial(tables, number, state, method=method)
    tables.write()
    attention_file(folder)
    return folder


@pytest.fixture
def folder(study, monkeypatch):
    """The study, as it was before the last test."""
    monkeypatch.setattr(page, "get_plotlyjs", str)
    before = {name: (study / name).read_bytes() for name in (STUDY_FILE, *TABLES)}
    yield study
    for name, content in before.items():
        (study / name).write_bytes(content)


READERS = {
    "report": write_report,
    "compare": lambda folder: compare_studies([folder]),
    "--start-from": lambda folder: best_configurations(str(folder), folder),
}


def results(folder):
    """Which of the three give a result, and the sentences of the others."""
    given, said = [], []
    for name, read in READERS.items():
        try:
            read(folder)
            given.append(name)
        except UserError as error:
            said.append(str(error))
    assert not [sentence for sentence in said if "\n" in sentence or len(sentence) > 700]
    return given


def test_study_that_nobody_changed_gives_all_results(folder):
    assert results(folder) == list(READERS)


@quick
@given(st.data())
def test_any_field_of_study_json_may_be_changed(folder, study_content, data):
    place = data.draw(st.sampled_from(sorted(paths(study_content), key=str)))
    value = data.draw(st.sampled_from((*VALUES, MISSING)))
    (folder / STUDY_FILE).write_text(json.dumps(changed(study_content, place, value)))
    results(folder)


@pytest.fixture
def study_content(folder):
    return json.loads((folder / STUDY_FILE).read_text())


@quick
@given(st.data())
def test_any_column_of_a_table_may_be_changed(folder, data):
    name = data.draw(st.sampled_from(TABLES))
    content = (folder / name).read_bytes()
    table = pq.read_table(folder / name)
    column = data.draw(st.integers(0, table.num_columns - 1))
    others = columns(table.num_rows)
    other = data.draw(st.sampled_from([*others, "dropped", "half of the rows"]))
    if other == "dropped":
        table = table.remove_column(column)
    elif other == "half of the rows":
        table = table.slice(0, table.num_rows // 2)
    else:
        table = table.set_column(column, table.column_names[column], others[other])
    pq.write_table(table, folder / name)
    results(folder)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("settings", "reduction_factor"), 1.0, "reduction_factor must be ≥ 1.01"),
        (("settings", "reduction_factor"), 1 + 1e-9, "reduction_factor must be ≥ 1.01"),
        (("settings",), None, "settings: it should be a valid dictionary"),
        (("settings", "data"), 5, "data must be text, but got 5"),
        (("settings", "set"), [1], "set must be an object of values"),
        (("versions",), [1], "versions: it should be a valid dictionary"),
        (("images",), {}, "has no images.val"),
        (("images", "val"), 0, "images.val: it should be greater than or equal to 1"),
        (("distributions", "lr"), {"name": "x"}, "distributions.lr.name: it should be 'FloatDistribution'"),
        (("distributions", "lr", "attributes", "low"), 5.0, "distributions.lr: "),
        (("spent_seconds",), -1, "spent_seconds"),
        (("winner",), 99, "names trial 99, of which trials.parquet has no epoch"),
        (("time_use", "total"), 0, "time_use.total"),
        (("confirmation", "trials", "l2"), 7, "names trial 7"),
        (("held_out", "accuracy"), 1.5, "held_out.accuracy: it should be less than or equal to 1"),
        (("held_out", "interval"), [0.1], "held_out.interval"),
        (("race",), "so", "race: it should be a valid list"),
    ],
)
def test_report_names_the_file_and_the_field(folder, study_content, place, value, said):
    (folder / STUDY_FILE).write_text(json.dumps(changed(study_content, place, value)))
    with pytest.raises(UserError, match=said) as raised:
        write_report(folder)
    assert STUDY_FILE in str(raised.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"number": 0, "trial": {"state": "won"}, "epoch": None}, "column state"),
        ({"number": 10**6, "trial": {}, "epoch": None}, "number"),
        ({"number": 0, "trial": {"epochs": [1]}, "epoch": None}, "trial.epochs"),
        ({"number": 9, "trial": {}, "epoch": None}, "column trial_id"),
        ({"number": 0, "trial": {}, "epoch": {"epoch": "x"}}, "column"),
        ({"number": 0, "trial": {}, "evil": 1, "epoch": None}, "evil"),
        (5, "no numbered event"),
    ],
)
def test_journal_event_of_a_stranger_is_refused(folder, change, said):
    told = int(pq.read_metadata(folder / "trials.parquet").metadata[b"delta_tune.events"])
    journal = folder / "journal.jsonl"
    journal.write_text(json.dumps([told + 1, change]) + "\n")
    try:
        with pytest.raises(UserError, match=said):
            compare_studies([folder])
    finally:
        journal.unlink()
