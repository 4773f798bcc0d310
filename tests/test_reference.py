"""The pages of docs/reference are those that docs/generate.py writes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

import delta_tune
from delta_tune.config import StudyConfig, TrialConfig, fields_of
from delta_tune.results.columns import epoch_columns, trial_columns
from delta_tune.results.tables import StudyTables

DOCS = Path(delta_tune.__file__).parents[1] / "docs"
PAGES = ("files.md", "flags.md", "trial-config.md")


@pytest.fixture(scope="module")
def generate():
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pages(tmp_path):
    """A copy of the pages as they are committed."""
    return Path(shutil.copytree(DOCS / "reference", tmp_path / "reference"))


def test_pages_are_up_to_date(generate, capsys):
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_pages_have_a_row_for_every_setting_and_column(generate):
    rows = {
        page: {
            line.split(" | ")[0].strip("| `").removeprefix("<code>").split("&#124;")[0] for line in text.splitlines()
        }
        for page, text in ((page, (DOCS / "reference" / page).read_text()) for page in PAGES)
    }
    assert {field.flag for field in fields_of(StudyConfig).values()} <= {
        row.split()[0] for row in rows["flags.md"] if row
    }
    assert set(fields_of(TrialConfig)) <= rows["trial-config.md"]
    assert {column.name for column in (*trial_columns(), *epoch_columns())} <= rows["files.md"]


def test_columns_are_those_of_the_table(tmp_path):
    schema = StudyTables(tmp_path, "val_accuracy").table().schema
    columns = [(column.name, column.type) for column in trial_columns() if column.name != "config.backbone"]
    assert columns == list(zip(schema.names, schema.types, strict=True))  # of one network


@pytest.mark.parametrize("page", PAGES)
def test_check_shows_what_is_out_of_date(generate, pages, page, capsys):
    assert generate.main(["--check"], pages) == 0
    (pages / page).write_text((pages / page).read_text() + "| old |\n")
    assert generate.main(["--check"], pages) == 1
    printed = capsys.readouterr().out
    assert "-| old |" in printed
    assert f"{pages / page} is out of date" in printed


def test_pages_are_written_anew(generate, pages, tmp_path):
    assert generate.main([], tmp_path / "new") == 0
    for page in PAGES:
        assert (tmp_path / "new" / page).read_text() == (pages / page).read_text()


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a < b | c", "a &lt; b &#124; c"),
        ("DIR/<class>/* and `DIR/<class>/*`", "DIR/&lt;class>/&#42; and `DIR/<class>/*`"),
        ("`N|auto`", "<code>N&#124;auto</code>"),
        ("`<a>|b`", "<code>&lt;a&gt;&#124;b</code>"),
    ],
)
def test_prose_is_safe_in_a_cell(generate, text, cell):
    assert generate.prose(text) == cell
