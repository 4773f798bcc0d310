"""The comparison of two studies' folders, on files that no study wrote."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # programs, not a package
from bit_identity import compare_studies

WEIGHTS = {"fc.weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "bn.steps": np.array(3)}
EPOCHS = {"trial_id": ["00000", "00001"], "val_loss": [0.25, math.nan], "seconds": [1.5, 2.5]}
RECORD = {"winner": 1, "test_scorings": [{"test_loss": 0.5, "time": "2026-11-25"}], "settings": {"out": "a", "seed": 7}}


def write(folder, *, weights=WEIGHTS, epochs=EPOCHS, record=RECORD):
    (folder / "best").mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "best" / "model.safetensors")
    pq.write_table(pa.table(epochs), folder / "epochs.parquet")
    (folder / "study.json").write_text(json.dumps(record))


@pytest.fixture
def studies(tmp_path):
    """Two folders with the same content."""
    before, after = tmp_path / "before", tmp_path / "after"
    write(before)
    shutil.copytree(before, after)
    return before, after


def differences(studies, **options):
    return {item.file: item.difference for item in compare_studies(*studies, **options) if item.difference}


def test_copy_of_a_study_is_equal_and_all_its_values_are_counted(studies):
    items = compare_studies(*studies, label="copy")
    assert {(item.studies, item.file, item.values) for item in items} == {
        ("copy", "best/model.safetensors", 7),
        ("copy", "epochs.parquet", 4),  # without seconds
        ("copy", "study.json", 3),  # without time and out
    }
    assert not differences(studies)


def test_changed_bit_of_a_tensor_is_found(studies):
    changed = {name: array.copy() for name, array in WEIGHTS.items()}
    changed["fc.weight"].view(np.uint32)[1, 2] ^= 1
    write(studies[1], weights=changed)
    assert differences(studies) == {"best/model.safetensors": "fc.weight, row 5: 1.0 before, 1.0000001192092896 after"}


@pytest.mark.parametrize("other", [math.nextafter(0.25, 1), math.nan, None])
def test_changed_value_of_a_column_is_found(studies, other):
    write(studies[1], epochs=EPOCHS | {"val_loss": [other, math.nan]})
    assert differences(studies) == {"epochs.parquet": f"val_loss, row 0: 0.25 before, {other} after"}


def test_sign_of_zero_is_a_difference(studies):
    for folder, zero in zip(studies, (0.0, -0.0), strict=True):
        write(folder, epochs=EPOCHS | {"val_loss": [zero, 1.0]})
    assert differences(studies) == {"epochs.parquet": "val_loss, row 0: 0.0 before, -0.0 after"}


def test_changed_value_within_a_list_is_found(studies):
    for folder, last in zip(studies, (2.0, 3.0), strict=True):
        write(folder, epochs={"W": [[1.0], [1.0, last]]})
    assert differences(studies) == {"epochs.parquet": "W, row 1: [1.0, 2.0] before, [1.0, 3.0] after"}


def test_changed_type_of_a_column_is_found(studies):
    write(studies[1], epochs=EPOCHS | {"val_loss": pa.array([0.25, math.nan], pa.float32())})
    assert differences(studies) == {"epochs.parquet": "val_loss: double before, float after"}


def test_further_row_is_found(studies):
    for folder, rows in zip(studies, (2, 1), strict=True):
        write(folder, epochs={"epoch": list(range(rows))})
    assert differences(studies) == {"epochs.parquet": "epoch: 2 rows before, 1 after"}


def test_times_and_paths_are_ignored(studies):
    scoring = {"test_loss": 0.5, "time": "2027-01-01"}
    record = RECORD | {"test_scorings": [scoring], "settings": {"out": "b", "seed": 7}, "spent_seconds_at": 1.0}
    write(studies[1], epochs=EPOCHS | {"seconds": [9.0, 9.0]}, record=record)
    assert not differences(studies)


def test_changed_score_of_the_record_is_found(studies):
    write(studies[1], record=RECORD | {"test_scorings": [{"test_loss": 0.75, "time": "2026-11-25"}]})
    assert differences(studies) == {"study.json": "test_scorings.0.test_loss: 0.5 before, 0.75 after"}


def test_column_that_one_side_lacks_is_a_difference_unless_allowed(studies):
    write(studies[1], epochs=EPOCHS | {"val_new": [1.0, 2.0]})
    assert differences(studies) == {"epochs.parquet": "only after has val_new"}
    assert not differences(studies, allow=["val_new"])


def test_missing_file_is_a_difference_unless_allowed(studies):
    (studies[1] / "best" / "model.safetensors").unlink()
    assert differences(studies) == {"best/model.safetensors": "only before has this file"}
    assert not differences(studies, allow=["best/*"])


def test_what_people_read_and_rays_files_are_not_compared(studies):
    for name in ("report.html", "study.log", "best/README.md", "ray/run-1/tuner.pkl"):
        (studies[1] / name).parent.mkdir(parents=True, exist_ok=True)
        (studies[1] / name).write_text("other")
    assert not differences(studies)
    (studies[1] / "other.csv").write_text("x")
    assert differences(studies) == {"other.csv": "only after has this file"}


def test_number_of_further_differences_is_named(studies):
    write(studies[1], epochs=EPOCHS | {"trial_id": ["00000", "00002"], "val_loss": [0.5, 0.5]})
    assert differences(studies)["epochs.parquet"] == "trial_id, row 1: '00001' before, '00002' after (and 1 more)"
