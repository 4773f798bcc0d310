"""A result in a console and in a notebook."""

import json
from html.parser import HTMLParser
from pathlib import Path

import nbclient
import nbformat
import pytest

from delta_tune.config import TrialConfig
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.study_result import StudyResult
from delta_tune.results.tables import StudyTables

STATES = {0: "completed", 1: "pruned", 2: "completed", 3: "failed", **dict.fromkeys(range(4, 12), "pruned")}


def make_result(folder, metric="val_accuracy"):
    """Twelve trials, the third the best of the two completed ones, and a pruned one above it."""
    tables = StudyTables(Path(folder), metric)
    for number, state in STATES.items():
        tables.add(number, TrialConfig(regularizer="l2", lr=0.01), {}, {})
        if state != "failed":
            score = {0: 0.5, 1: 0.9, 2: 0.75}.get(number, 0.1)
            tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1, metric: score})
        tables.finish(number, state, "it <broke>" if state == "failed" else None)
    return StudyResult(
        best_config=tables.config(2),
        best_metrics={"val_accuracy": 0.75},
        trials=tables.table(),
        path=Path(folder),
        report=None,
        summary="Best: l2 with <b>tags</b> & more.\nTables: there",
        metric=metric,
    )


@pytest.fixture
def result(tmp_path):
    return make_result(tmp_path)


class Cells(HTMLParser):
    """Texts by tag, and that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts = [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_repr_is_a_line_with_verdict_states_and_folder(result, tmp_path):
    assert repr(result) == (
        f"StudyResult(Best: l2 with <b>tags</b> & more. 12 trials (2 completed, 1 failed, 9 pruned); '{tmp_path}')"
    )


def test_html_says_verdict_and_best_configuration_escaped(result):
    cells = Cells(result._repr_html_())
    assert "Best: l2 with <b>tags</b> & more." in cells.texts["p"]
    assert "b" not in cells.texts
    assert "regularizer='l2'" in cells.texts["code"][0]
    assert "alpha" not in cells.texts["code"][0], "what does not apply is left out"


@pytest.mark.parametrize(
    ("metric", "first"),
    [("val_accuracy", ["2", "0", "1"]), ("val_macro_f1", ["2", "0", "1"]), ("val_loss", ["0", "2"])],
)
def test_html_has_the_best_trials_of_full_budget_first_by_the_metric(metric, first, tmp_path):
    text = make_result(tmp_path, metric)._repr_html_()
    rows = [row.split("</td>")[0].rpartition(">")[2] for row in text.split("<tr>")[2:]]
    assert rows[: len(first)] == first
    assert f"By {metric}, the best 8 of" in text
    assert len(rows) == 8


def test_html_of_a_study_without_a_winner_has_no_configuration(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    empty = StudyResult(
        best_config=None, best_metrics={}, trials=tables.table(), path=tmp_path, report=None, summary=""
    )
    assert "Best configuration" not in empty._repr_html_()
    assert "0 trials" in repr(empty)


CELL = """
import sys
sys.path[:0] = {tests!r}
from test_study_result import make_result
from delta_tune.console.live_view import RunProgress
from delta_tune.console.progress import Progress
from delta_tune.results.tables import StudyTables
from pathlib import Path

result = make_result({folder!r})
tables = StudyTables.read(Path({folder!r}), "val_accuracy")
progress, standing = Progress(), RunProgress(tables, 12)
with progress.live(standing, tables, "Search"), progress.bar("Work", 2) as advance:
    progress.trial(tables, 2, 12)
    advance(2)
progress.methods(tables)
result
"""


@pytest.mark.slow
def test_notebook_shows_plain_lines_and_the_result_as_html(tmp_path):
    tables = tmp_path / "study"
    tables.mkdir()
    source = CELL.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])], folder=str(tables))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    said = json.dumps([output for output in outputs if output.output_type != "execute_result"])
    assert not [output for output in outputs if output.output_type == "error"]
    assert "trial 2" in said
    assert "trials done" not in said, "a live view would fill the cell with frames"

    (shown,) = (output for output in outputs if output.output_type == "execute_result")
    assert "Best configuration" in shown.data["text/html"]
