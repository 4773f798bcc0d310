"""What a study leaves behind: two tables that may be read at any time."""

import json
import random
import subprocess
import sys
import time

import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_tune.config import TRIAL_FIELDS, TrialConfig, UserError
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.journal import Journal
from delta_tune.results.layout import EPOCHS_FILE, JOURNAL_FILE, TRIALS_FILE, trial_name
from delta_tune.results.tables import WRITING_SHARE, StudyTables

OF_ONE = tuple(name for name in TRIAL_FIELDS if name != "backbone")
"""The fields that a study of one network writes."""


def row(epoch, accuracy=0.5, **more):
    values = {name: 0.0625 * i for i, name in enumerate(EPOCH_COLUMNS)}
    return values | {"epoch": epoch, "val_accuracy": accuracy, "seconds": 2.0, "val_loss": 1 - accuracy} | more


def add(tables, number, accuracies=(), state=None, *, params=None, helpers=None, losses=None, **config):
    tables.add(number, TrialConfig(**config), params or {"lr": 0.5}, helpers or {})
    for epoch, accuracy in enumerate(accuracies, 1):
        more = {} if losses is None else {"val_loss": losses[epoch - 1]}
        tables.report(number, row(epoch, accuracy, **more))
    if state is not None:
        tables.finish(number, state)


@pytest.fixture
def tables(tmp_path):
    return StudyTables(tmp_path, "val_accuracy")


@pytest.fixture
def filled(tables):
    add(tables, 0, [0.5, 0.75, 0.625], layers=("a", "b"), helpers={"_scale": 0.1}, params={"lr": 0.1})
    tables.start(0, "node", 1000.0, 1.5)
    tables.finish(0, "completed")
    add(tables, 1, [0.25], "pruned", regularizer="l2", weight_decay=0.01)
    add(tables, 2, [0.5], regularizer="l2_fe", max_grad_norm=2.0)
    add(tables, 3)
    tables.write()
    return tables


def test_tables_read_back_as_written(filled):
    assert StudyTables.read(filled.folder, "val_accuracy").table().equals(filled.table())


def test_trial_that_was_scored_on_a_sample_ranks_last_until_it_is_scored_on_all(tables):
    add(tables, 0, [0.9])
    tables.note_images(0, 100, 20)
    tables.finish(0, "completed")
    add(tables, 1, [0.5], "completed")
    tables.write()
    for each in (tables, StudyTables.read(tables.folder, "val_accuracy")):
        assert (each.ranked(), each.leader) == ([1, 0], 1)
    tables.note_images(0, 100, None)
    assert tables.ranked() == [0, 1]


def test_tables_read_back_every_epoch(filled):
    assert StudyTables.read(filled.folder, "val_accuracy").epochs == filled.epochs


def test_tables_that_were_read_are_written_the_same(filled):
    before = [pq.read_table(filled.folder / name) for name in (TRIALS_FILE, EPOCHS_FILE)]
    StudyTables.read(filled.folder, "val_accuracy").write()
    assert [pq.read_table(filled.folder / name) for name in (TRIALS_FILE, EPOCHS_FILE)] == before


def test_tables_are_on_disk_after_each_event(tables):
    seen = []

    def look():
        (row,) = StudyTables.read(tables.folder, "val_accuracy").trials.values()
        seen.append((row["state"], row["epochs"]))

    add(tables, 0)
    look()
    tables.start(0, "node", 1000.0, 0.0)
    look()
    tables.report(0, row(1))
    look()
    tables.run_out_of_memory(0)
    look()
    tables.finish(0, "completed")
    look()
    assert seen == [("waiting", 0), ("running", 0), ("running", 1), ("waiting", 1), ("completed", 1)]


def test_tables_leave_no_partial_file(filled):
    assert sorted(file.name for file in filled.folder.iterdir()) == [EPOCHS_FILE, TRIALS_FILE]


def test_tables_never_show_half_a_file(tables, monkeypatch):
    add(tables, 0, [0.5])
    tables.write()
    before = (tables.folder / TRIALS_FILE).read_bytes(), (tables.folder / EPOCHS_FILE).read_bytes()

    def dies(table, file):
        file.write_bytes(b"PAR1 and then the power went")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", dies)
    with pytest.raises(OSError, match="no space left"):
        tables.write()
    assert ((tables.folder / TRIALS_FILE).read_bytes(), (tables.folder / EPOCHS_FILE).read_bytes()) == before


def test_tables_of_a_kill_between_the_two_files_have_the_epoch_in_both(tables, monkeypatch):
    add(tables, 0, [0.5])
    tables.write()
    write_table, written = pq.write_table, []

    def dies_at_the_second(table, file):
        written.append(file)
        if len(written) == 2:
            raise KeyboardInterrupt
        write_table(table, file)

    monkeypatch.setattr(pq, "write_table", dies_at_the_second)
    tables.report(0, row(2))
    with pytest.raises(KeyboardInterrupt):
        tables.write()
    assert pq.read_table(tables.folder / TRIALS_FILE)["epochs"].to_pylist() == [1], "it never claims what is not there"
    for journal in ("there", "lost"):
        again = StudyTables.read(tables.folder, "val_accuracy")
        assert (again.trials[0]["epochs"], len(again.epochs[0])) == (2, 2), journal
        (tables.folder / JOURNAL_FILE).unlink(missing_ok=True)


def rows_of(tables):
    """Both tables as they are written, sets of columns apart."""
    trials = {number: {k: v for k, v in row.items() if v is not None} for number, row in tables.trials.items()}
    return trials, tables.epochs, tables.open, tables.leader


def a_study(tables):
    """A study with repeated epochs, an end for lack of memory and all kinds of ends, which stops after each event."""
    random.seed(0)
    for number in range(6):
        add(tables, number, helpers={"_scale": random.random()})
        yield
        tables.start(number, "node", 1000.0 + number, 0.5)
        yield
        for epoch in (1, 2, 3, 2, 3):
            tables.report(number, row(epoch, random.random()), 1000.0 + random.random())
            yield
        if number == 2:
            tables.run_out_of_memory(number)
            yield
        if number < 5:
            tables.finish(number, ("completed", "pruned", "completed", "failed", "completed")[number], None)
            yield


@pytest.fixture
def slow(monkeypatch):
    """The tables are never written whole of themselves: writing takes its share of the time for ever."""
    monkeypatch.setattr("delta_tune.results.tables.WRITING_SHARE", 1e-9)


def test_tables_of_a_session_that_was_killed_have_all_that_the_journal_says(slow, tables):
    for _ in a_study(tables):
        assert rows_of(StudyTables.read(tables.folder, "val_accuracy")) == rows_of(tables)
    assert pq.read_table(tables.folder / TRIALS_FILE).num_rows == 0, "else the journal has not been tried"


def test_tables_of_a_kill_before_the_journal_is_removed_are_the_same(slow, tables, monkeypatch):
    for _ in a_study(tables):
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "clear", lambda journal: None)
            tables.write()
        assert rows_of(StudyTables.read(tables.folder, "val_accuracy")) == rows_of(tables)


def test_tables_are_not_changed_by_a_journal_that_was_copied_before_them(slow, tables):
    for number, _ in enumerate(a_study(tables)):
        if number == 20:
            older = (tables.folder / JOURNAL_FILE).read_text()
    tables.write()
    (tables.folder / JOURNAL_FILE).write_text(older)
    assert rows_of(StudyTables.read(tables.folder, "val_accuracy")) == rows_of(tables)


def test_tables_with_a_journal_are_written_as_tables_without_one(slow, tables, tmp_path):
    for _ in a_study(tables):
        pass
    (tmp_path / "whole").mkdir()
    whole = StudyTables(tmp_path / "whole", "val_accuracy")
    whole.trials, whole.epochs = tables.trials, tables.epochs
    whole.write()
    StudyTables.read(tables.folder, "val_accuracy").write()
    for name in (TRIALS_FILE, EPOCHS_FILE):
        assert pq.read_table(tables.folder / name).equals(pq.read_table(whole.folder / name))
    assert not (tables.folder / JOURNAL_FILE).exists()


def test_tables_lose_no_more_than_the_event_that_was_being_written(slow, tables):
    add(tables, 0, [0.5, 0.75])
    file = tables.folder / JOURNAL_FILE
    file.write_text(file.read_text()[:-9])
    again = StudyTables.read(tables.folder, "val_accuracy")
    assert [row["epoch"] for row in again.epochs[0]] == [1]
    again.report(0, row(2, 0.25))
    assert [row["val_accuracy"] for row in StudyTables.read(tables.folder, "val_accuracy").epochs[0]] == [0.5, 0.25]


def test_tables_that_are_read_change_nothing_on_disk(slow, tables):
    add(tables, 0, [0.5])
    before = {file.name: file.read_bytes() for file in tables.folder.iterdir()}
    StudyTables.read(tables.folder, "val_accuracy").close_without_writing(0, "completed")
    assert {file.name: file.read_bytes() for file in tables.folder.iterdir()} == before


def test_tables_are_written_whole_for_no_more_than_their_share_of_the_time(tables, monkeypatch):
    now, written, write_table = [0.0], [], pq.write_table

    def takes_a_second(table, file):
        now[0] += 0.5
        written.append(now[0])
        write_table(table, file)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pq, "write_table", takes_a_second)
    add(tables, 0)
    for epoch in range(1, 200):
        now[0] += 1
        tables.report(0, row(epoch))
    seconds = len(written) / 2
    assert 0.5 * WRITING_SHARE * now[0] <= seconds <= WRITING_SHARE * now[0] + 1


def test_tables_catch_up_in_a_lull_and_once(tables, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pq, "write_table", slowly(now, pq.write_table))
    add(tables, 0)
    tables.catch_up()
    assert pq.read_table(tables.folder / TRIALS_FILE).num_rows == 0
    now[0] += 100
    tables.catch_up()
    assert pq.read_table(tables.folder / TRIALS_FILE).num_rows == 1
    before = (tables.folder / TRIALS_FILE).stat().st_ino
    now[0] += 100
    tables.catch_up()
    assert (tables.folder / TRIALS_FILE).stat().st_ino == before, "there is nothing new"


def slowly(now, write_table):
    def write(table, file):
        now[0] += 1
        write_table(table, file)

    return write


def test_tables_refuse_a_damaged_journal(slow, tables):
    add(tables, 0, [0.5])
    file = tables.folder / JOURNAL_FILE
    file.write_text("{" + file.read_text())
    with pytest.raises(UserError, match="cannot be resumed"):
        StudyTables.read(tables.folder, "val_accuracy")


def test_tables_know_their_leader_and_what_is_open(tables):
    for number, (score, state) in enumerate(
        [(0.9, "pruned"), (0.5, "completed"), (0.7, "completed"), (0.7, "completed")]
    ):
        add(tables, number, [score], state)
        assert tables.leader == next(iter(tables.ranked()), None)
        assert tables.open == set()
    add(tables, 9)
    assert (tables.leader, tables.open) == (2, {9})
    tables.close_without_writing(9, "failed")
    assert (tables.leader, tables.open) == (2, set())


def test_tables_of_no_trials_are_read(tables):
    tables.write()
    assert StudyTables.read(tables.folder, "val_accuracy").trials == {}


def test_tables_have_a_row_per_trial_in_order_of_number(tables):
    for number in (2, 0, 1):
        add(tables, number)
    assert tables.table()["trial_id"].to_pylist() == ["00000", "00001", "00002"]


def test_tables_summarise_a_trial_by_its_last_and_its_best_epoch(filled):
    (trial, *_) = filled.table().to_pylist()
    names = ("epochs", "val_accuracy", "best_val_accuracy", "best_epoch", "best_val_loss", "train_seconds")
    assert [trial[name] for name in names] == [3, 0.625, 0.75, 2, 0.25, 6.0]


def test_tables_best_epoch_is_the_first_of_equal_ones(tables):
    add(tables, 0, [0.5, 0.75, 0.75])
    assert tables.best_row(0)["epoch"] == 2


def test_tables_best_epoch_of_a_loss_is_its_least(tmp_path):
    tables = StudyTables(tmp_path, "val_loss")
    add(tables, 0, [0.5, 0.75, 0.9], losses=[3.0, 1.0, 2.0])
    assert (tables.best_row(0)["epoch"], tables.table()["best_val_accuracy"].to_pylist()) == (2, [0.75])


@pytest.fixture(params=["in memory", "on disk", "in the journal"])
def after(request, tables, monkeypatch):
    """The tables as they are, or as the next session reads them."""

    def state():
        if request.param == "on disk":
            tables.write()
        return tables if request.param == "in memory" else StudyTables.read(tables.folder, "val_accuracy")

    if request.param == "in the journal":
        monkeypatch.setattr(StudyTables, "catch_up", lambda self: None)
    return state


def test_epoch_of_an_earlier_version_that_is_told_again_changes_nothing(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    add(tables, 0)
    tables.report(0, row(1, contrast=None))
    del tables.epochs[0][0]["contrast"]
    assert not tables.report(0, row(1, contrast=None))
    assert tables.report(0, row(1, contrast=0.5))


def test_tables_repeated_epoch_takes_the_place_of_the_one_before(tables, after):
    """A trial goes on from its checkpoint; the epochs since then stay until they are trained again."""
    add(tables, 0, [0.5, 0.9, 0.6])
    tables.report(0, row(2, 0.75))
    found = after()
    assert [(r["epoch"], r["val_accuracy"]) for r in found.epochs[0]] == [(1, 0.5), (2, 0.75), (3, 0.6)]
    assert (found.trials[0]["epochs"], found.trials[0]["best_val_accuracy"]) == (3, 0.75)


def test_tables_repeated_epoch_keeps_the_time_of_its_first_report(tables, after):
    """A resume asks the rungs in that order, in which they decided."""
    add(tables, 0, [0.5, 0.9])
    add(tables, 1, [0.7])
    before = [r["reported"] for r in tables.epochs[0]]
    tables.report(0, row(1, 0.5, seconds=9.0))
    tables.report(0, row(2, 0.9, seconds=9.0))
    found = after().epochs[0]
    assert [r["reported"] for r in found] == before
    assert [r["seconds"] for r in found] == [9.0, 9.0]


def test_tables_epoch_that_is_only_told_again_changes_nothing(tables, tmp_path):
    add(tables, 0, [0.5, 0.9])
    events = tables._journal.count
    assert not tables.report(0, row(1, 0.5))
    assert not tables.report(0, row(2, 0.9))
    assert tables._journal.count == events
    assert tables.report(0, row(3, 0.9))


def test_tables_with_an_epoch_twice_are_refused(filled):
    """No session writes them: two may have worked on the study."""
    epochs = pq.read_table(filled.folder / EPOCHS_FILE)
    pq.write_table(pa.concat_tables([epochs, epochs.slice(1, 1)]), filled.folder / EPOCHS_FILE)
    with pytest.raises(UserError, match="the epochs of trial 0 are not 1, 2, 3 and so on"):
        StudyTables.read(filled.folder, "val_accuracy")


def test_tables_keep_a_bad_end_with_its_cause(tables):
    add(tables, 0, [0.5])
    tables.finish(0, "diverged", "loss is nan")
    tables.write()
    (trial,) = pq.read_table(tables.folder / TRIALS_FILE).to_pylist()
    assert (trial["state"], trial["error"]) == ("diverged", "loss is nan")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_tables_give_the_configuration_back_after_reading(filled, number):
    again = StudyTables.read(filled.folder, "val_accuracy")
    assert again.config(number).record() == {n: filled.trials[number][f"config.{n}"] for n in OF_ONE}


def test_tables_give_the_coordinates_back_bit_for_bit(tables):
    params = {"lr": 0.1 + 0.2, "_helper": None, "batch_size": 32, "nesterov": True, "layers": "all"}
    add(tables, 0, params=params)
    assert StudyTables.read(tables.folder, "val_accuracy").params(0) == params


def test_tables_columns_have_the_types_of_their_fields(filled):
    schema = pq.read_schema(filled.folder / TRIALS_FILE)
    expected = {
        "trial_id": pa.string(),
        "number": pa.int32(),
        "state": pa.string(),
        "epochs": pa.int32(),
        "val_accuracy": pa.float64(),
        "best_epoch": pa.int32(),
        "config.regularizer": pa.string(),
        "config.layers": pa.string(),
        "config.alpha": pa.float64(),
        "config.nesterov": pa.bool_(),
        "config.weight_decay": pa.float64(),
        "config.max_grad_norm": pa.float64(),
        "config.batch_size": pa.int64(),
        "config.seed": pa.int64(),
        "param._scale": pa.float64(),
        "train_seconds": pa.float64(),
        "eval_seconds": pa.float64(),
        "start_seconds": pa.float64(),
        "began": pa.float64(),
        "ended": pa.float64(),
        "node": pa.string(),
        "error": pa.string(),
    }
    assert {name: schema.field(name).type for name in expected} == expected
    assert {n for n in schema.names if n.startswith("config.")} == {f"config.{n}" for n in OF_ONE}


def test_tables_have_a_column_of_the_backbone_where_trials_choose_one(tables):
    add(tables, 0, [0.5], "completed", regularizer="l2", backbone="one")
    add(tables, 1, [0.4], "completed", regularizer="l2", backbone="other")
    tables.write()
    again = StudyTables.read(tables.folder, "val_accuracy")
    assert [again.backbone(number) for number in (0, 1)] == ["one", "other"]
    assert again.config(1) == tables.config(1)
    assert again.method(1) == "l2 on other"


def test_tables_column_types_do_not_depend_on_the_trials(tables):
    tables.write()
    before = pq.read_schema(tables.folder / TRIALS_FILE), pq.read_schema(tables.folder / EPOCHS_FILE)
    add(tables, 0, [0.5], "completed", regularizer="l2")
    tables.write()
    assert (pq.read_schema(tables.folder / TRIALS_FILE), pq.read_schema(tables.folder / EPOCHS_FILE)) == before


def test_tables_null_what_does_not_apply_to_the_method(filled):
    assert filled.table()["config.alpha"].to_pylist() == [1.0, None, None, 1.0]


@pytest.mark.parametrize(
    ("values", "stored"),
    [([1, 2.5], [1.0, 2.5]), ([1, "long"], ["1", "long"]), ([True, 3], ["True", "3"]), (["a", None], ["a", None])],
)
def test_tables_keep_helpers_of_several_types(tables, values, stored):
    for number, value in enumerate(values):
        add(tables, number, helpers={"_recipe": value})
    tables.write()
    assert pq.read_table(tables.folder / TRIALS_FILE)["param._recipe"].to_pylist() == stored


def test_ranked_takes_only_trials_of_full_budget(tables):
    for number, state in enumerate(["pruned", "completed", "stopped", "diverged", "failed", None]):
        add(tables, number, [0.9], state)
    assert tables.ranked() == [1]


def test_ranked_goes_by_the_best_epoch_not_the_last(tables):
    add(tables, 0, [0.5, 0.6], "completed")
    add(tables, 1, [0.7, 0.1], "completed")
    assert tables.ranked() == [1, 0]


def test_ranked_breaks_ties_by_the_validation_loss_of_the_best_epoch(tables):
    add(tables, 0, [0.75, 0.5], "completed", losses=[0.9, 0.01])
    add(tables, 1, [0.75, 0.5], "completed", losses=[0.4, 0.5])
    assert tables.ranked() == [1, 0]


def test_ranked_keeps_the_earlier_of_equal_trials_first(tables):
    for number in (1, 0):
        add(tables, number, [0.75], "completed")
    assert tables.ranked() == [0, 1]


def test_ranked_of_a_loss_puts_the_least_first(tmp_path):
    tables = StudyTables(tmp_path, "val_loss")
    add(tables, 0, [0.9], "completed", losses=[2.0])
    add(tables, 1, [0.1], "completed", losses=[1.0])
    assert tables.ranked() == [1, 0]


def test_ranked_of_one_method(tables):
    add(tables, 0, [0.9], "completed")
    add(tables, 1, [0.5], "completed", regularizer="l2")
    assert tables.ranked("l2") == [1]


@pytest.mark.parametrize("name", [TRIALS_FILE, EPOCHS_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "other"])
def test_tables_refuse_what_does_not_read(filled, name, damage):
    file = filled.folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "other":
        pq.write_table(pa.table({"x": [1]}), file)
    elif damage != "missing":
        file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"x" * 999}[damage])
    with pytest.raises(UserError, match=r"cannot be resumed: its tables do not read.*start a new study"):
        StudyTables.read(filled.folder, "val_accuracy")


def test_tables_refuse_epochs_of_a_trial_that_is_unknown(filled):
    kept = pq.read_table(filled.folder / TRIALS_FILE).slice(1)
    pq.write_table(kept, filled.folder / TRIALS_FILE)
    with pytest.raises(UserError, match="cannot be resumed"):
        StudyTables.read(filled.folder, "val_accuracy")


def test_trial_name_sorts_as_its_number():
    assert [trial_name(n) for n in (7, 12345)] == ["00007", "12345"]


def in_pandas(file):
    frame = pandas.read_parquet(file)
    kinds = {
        name: {"i": "int", "f": "float", "b": "bool"}.get(kind.kind, "text") for name, kind in frame.dtypes.items()
    }
    rows = frame.to_dict("records")
    return kinds, [{k: None if v is None or v != v else v for k, v in row.items()} for row in rows]


def in_polars(file):
    frame = polars.read_parquet(file)
    names = {"Int32": "int", "Int64": "int", "Float64": "float", "Boolean": "bool", "String": "text"}
    return {name: names[str(kind)] for name, kind in frame.schema.items()}, frame.to_dicts()


DUCKDB = """
import duckdb, json, sys
found = duckdb.connect().execute("select * from read_parquet(?)", [sys.argv[1]])
kinds = {name: str(kind) for name, kind, *_ in found.description}
print(json.dumps([kinds, [dict(zip(kinds, values)) for values in found.fetchall()]]))
"""


def in_duckdb(file):
    # In a process of its own: its bindings (2.0) tell of leaks on stderr when an interpreter ends.
    done = subprocess.run([sys.executable, "-c", DUCKDB, file], capture_output=True, text=True, timeout=60, check=True)
    kinds, rows = json.loads(done.stdout)
    names = {"INTEGER": "int", "BIGINT": "int", "DOUBLE": "float", "BOOLEAN": "bool", "VARCHAR": "text"}
    return {name: names[kind] for name, kind in kinds.items()}, rows


@pytest.mark.parametrize("name", [TRIALS_FILE, EPOCHS_FILE])
@pytest.mark.parametrize("read", [in_pandas, in_polars, in_duckdb])
def test_tables_have_the_same_types_and_values_in_other_libraries(filled, name, read):
    table = pq.read_table(filled.folder / name)
    names = {"int32": "int", "int64": "int", "double": "float", "bool": "bool", "string": "text"}
    kinds, rows = read(filled.folder / name)
    expected = {field.name: names[str(field.type)] for field in table.schema}
    if read is in_pandas:  # it has no missing integers and booleans of its own
        empty = {column for column in table.column_names if table[column].null_count}
        for column in empty & {column for column, kind in expected.items() if kind in ("int", "bool")}:
            expected[column] = "float" if expected[column] == "int" else "text"
    assert kinds == expected
    assert rows == table.to_pylist()


def test_errors_that_name_files_of_any_name_are_written(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    add(tables, 0)
    tables.finish(0, "failed", "caf\udce9.png is damaged")
    tables.write()
    read = StudyTables.read(tmp_path, "val_accuracy")
    assert read.trials[0]["error"] == r"caf\xe9.png is damaged"
