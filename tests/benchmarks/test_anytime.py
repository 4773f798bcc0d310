"""Accuracy against time: which model is in hand, how it is watched, the splits, the table; and a short run of all."""

import json
import math
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
import anytime
from anytime_parts import tasks
from anytime_parts.arms import Watch
from anytime_parts.plot import picture
from anytime_parts.points import EACH, OURS, USUAL, Run, Version, cell, difference, early_lead, leads, model_at
from anytime_parts.tables import clock, page, table

POINTS = (15, 30, 60)
FACTS = {"commit": "abc", "load": [0.5, 2.5], "train": 20, "val": 10, "test": 8, "cpus": 2}


def run_of(arm, *models, budget=60, seed=0, ended=61.0, guess="11000000"):
    versions = tuple(Version(seconds=seconds, right=right) for seconds, right in models)
    given = {"data": "photos", "model": "net", "image_size": 32, "exit_status": 0, "facts": FACTS}
    return Run(**given, arm=arm, seed=seed, budget=budget, versions=versions, guess=guess, ended=ended)


def test_model_at_is_the_newest_that_existed():
    versions = [Version(seconds=s, right="1") for s in (40, 12, 30)]
    assert [model_at(versions, at) and model_at(versions, at).seconds for at in (11.9, 12, 29, 35, 900)] == [
        None, 12, 12, 30, 40
    ]  # fmt: skip


def test_cell_without_a_model_is_the_guess():
    found = cell([run_of("ours", (20, "11110000"))], OURS, 15, 60)
    assert (found.accuracy, found.models) == (0.25, 0)


def test_cell_by_budget_takes_the_last_model_of_the_run_with_that_budget():
    runs = [run_of("ours", (20, "11110000"), budget=15, ended=21.5), run_of("ours", (10, "11111111"))]
    found = cell(runs, EACH, 15, 60)
    assert (found.accuracy, found.ended) == (0.5, 21.5)


def test_cell_averages_seeds():
    runs = [run_of("ours", (5, "11110000")), run_of("ours", (50, "11111111"), seed=1)]
    found = cell(runs, OURS, 15, 60)
    assert (found.accuracy, found.models) == ((0.5 + 0.25) / 2, 1)


def test_difference_has_the_standard_error_of_paired_images():
    ours, usual = "1" * 50 + "0" * 30 + "1" * 20, "1" * 50 + "1" * 10 + "0" * 40
    runs = [run_of("ours", (5, ours), guess="0" * 100), run_of("usual", (5, usual), guess="0" * 100)]
    cells = [cell(runs, column, 15, 60).right for column in (OURS, USUAL)]
    only_ours, only_usual = 20, 10  # McNemar's discordant pairs
    expected = math.sqrt(only_ours + only_usual - (only_ours - only_usual) ** 2 / 100) / 100
    assert difference(*cells) == pytest.approx((0.10, expected))


def test_leads_are_of_points_that_both_arms_have():
    runs = [run_of("ours", (5, "11110000")), run_of("usual", (20, "11100000"))]
    assert {point: lead for point, (lead, _) in leads(runs, USUAL, POINTS).items()} == {15: 0.25, 30: 0.125, 60: 0.125}
    assert leads(runs[:1], USUAL, POINTS) == {}


def test_early_lead_is_the_median_up_to_four_minutes():
    assert early_lead([{15: (0.3, 0.1), 240: (0.1, 0.1), 480: (-1, 0.1)}, {60: (0.2, 0.1)}]) == 0.2
    assert early_lead([{}]) is None


def test_table_shows_the_model_in_hand_and_what_it_leads_by():
    runs = [
        run_of("ours", (5, "11110000"), (40, "11111100")),
        run_of("ours", (16, "11110000"), budget=15, ended=17.2),
        run_of("usual", (20, "11100000")),
    ]
    assert table(runs, [OURS, EACH, USUAL], POINTS) == [
        "| | ours | ours, a run for each | usual |",
        "|---|---|---|---|",
        "| 15 s | 50.0 | 50.0, at 17 s | none, 25.0 (ours +25.0 ± 15.3) |",
        "| 30 s | 50.0 |  | 37.5 (ours +12.5 ± 11.7) |",
        "| 1 min | 75.0 | 75.0, at 61 s | 37.5 (ours +37.5 ± 17.1) |",
    ]


def test_page_names_the_least_lead_and_the_median():
    runs = [run_of("ours", (5, "11110000")), run_of("usual", (20, "11111000"))]
    *_, least, median = page({"photos": runs}, [OURS, USUAL], POINTS)
    assert least == "photos: the least lead over usual is -12.5 ± 11.7, at 30 s."
    assert median == "The median lead over usual at the points up to 4 min is -12.5 points."


def test_page_without_ours_compares_nothing():
    assert "ours" not in "\n".join(page({"photos": [run_of("usual", (20, "11111000"))]}, [USUAL], POINTS))


@pytest.mark.parametrize(("seconds", "text"), [(15, "15 s"), (60, "1 min"), (90, "1.5 min"), (960, "16 min")])
def test_clock_reads_as_a_person_says_it(seconds, text):
    assert clock(seconds) == text


def test_picture_has_a_curve_for_each_watched_run_and_a_dot_for_each_end():
    runs = [
        run_of("ours", (5, "11110000"), (40, "11111100")),
        run_of("ours", (5, "11110000"), budget=15, ended=16),
        run_of("usual"),
    ]
    svg = ElementTree.fromstring(picture({"<photos>": runs}, [OURS, EACH, USUAL], POINTS))
    curves = [path for path in svg.findall(".//{*}path") if path.get("fill") == "none"]
    assert (len(curves), len(svg.findall(".//{*}circle"))) == (1, 2)
    assert "<photos>" in [text.text for text in svg.findall(".//{*}text")]


def test_run_survives_its_line_of_json(tmp_path):
    run = run_of("ours", (5, "11110000"))
    anytime.append(tmp_path / "runs.jsonl", run)
    anytime.append(tmp_path / "runs.jsonl", run_of("usual"))
    assert anytime.read(tmp_path / "runs.jsonl") == [run, run_of("usual")]


def replace(best, name, text):
    best.mkdir(exist_ok=True)
    (best / "new").write_text(text)
    os.replace(best / "new", best / name)


def kept_by(watch):
    """(moment, weights, configuration) of each model."""
    return [
        (moment, *((watch.kept / str(number) / name).read_text() for name in ("model.safetensors", "config.json")))
        for number, moment in enumerate(watch.moments)
    ]


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path / "best", tmp_path / "kept")


def test_watch_keeps_each_model_with_the_moment_when_it_was_whole(watch):
    watch.look(1)
    for number, seconds in ((1, 2), (2, 6)):
        replace(watch.best, "model.safetensors", f"weights {number}")
        watch.look(seconds)  # the new weights beside the old configuration, or none
        replace(watch.best, "config.json", f"config {number}")
        for later in (1, 2, 3):
            watch.look(seconds + later)
    assert kept_by(watch) == [(3, "weights 1", "config 1"), (7, "weights 2", "config 2")]


def test_watch_takes_a_new_configuration_of_the_same_weights_as_no_new_model(watch):
    replace(watch.best, "model.safetensors", "weights")
    for number, seconds in ((1, 1), (2, 5)):
        replace(watch.best, "config.json", f"config {number}")
        watch.look(seconds)
        watch.look(seconds + 1)
    assert kept_by(watch) == [(1, "weights", "config 2")]


def test_watch_lets_a_folder_vanish_and_come_back(watch, tmp_path):
    replace(watch.best, "model.safetensors", "weights")
    replace(watch.best, "config.json", "config")
    watch.look(1)
    watch.best.rename(tmp_path / "old")
    watch.look(2)
    (tmp_path / "old").rename(watch.best)
    watch.look(3)
    watch.look(4)
    assert kept_by(watch) == [(3, "weights", "config")]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two classes of 40 and 20 files without splits, and the same with a test split."""
    monkeypatch.setattr(tasks, "DATA", tmp_path)
    for name, root in (("whole", "whole"), ("split", "split/train"), ("split", "split/test")):
        for label, count in (("cat", 40), ("dog", 20)):
            (tmp_path / root / label).mkdir(parents=True)
            for i in range(count):
                (tmp_path / root / label / f"{i}.jpg").write_text(f"{name} {label} {i}")
    return tmp_path


def counts(splits):
    return {split: {label: len(paths) for label, paths in files.items()} for split, files in splits.items()}


def test_splits_that_are_missing_are_drawn_from_each_class(photos, tmp_path):
    found = tasks.splits_of("whole", 0, tmp_path / "work")
    assert counts(found) == {
        "test": {"cat": 10, "dog": 5}, "val": {"cat": 6, "dog": 3}, "train": {"cat": 24, "dog": 12}
    }  # fmt: skip
    files = [path for each in found.values() for paths in each.values() for path in paths]
    assert len(set(files)) == len(files) == 60


def test_splits_of_ten_a_class_keep_all_of_test(photos, tmp_path):
    assert counts(tasks.splits_of("split-10", 0, tmp_path / "work")) == {
        "train": {"cat": 10, "dog": 10}, "test": {"cat": 40, "dog": 20}, "val": {"cat": 10, "dog": 10}
    }  # fmt: skip


def test_splits_of_another_seed_have_the_same_test(photos, tmp_path):
    first, again, other = (tasks.splits_of("whole", seed, tmp_path / "work") for seed in (0, 0, 1))
    assert first == again
    assert first["test"] == other["test"]
    assert first["train"] != other["train"]


def test_links_lead_to_the_files_and_their_fingerprint_to_their_content(photos, tmp_path):
    splits = tasks.splits_of("whole", 0, tmp_path / "work")
    before = tasks.link_splits(splits, tmp_path / "one")
    assert (tmp_path / "one" / "test" / "dog" / splits["test"]["dog"][0].name).read_text().startswith("whole dog")
    assert tasks.link_splits(splits, tmp_path / "two") == before
    splits["val"]["cat"][0].write_text("another photo")
    assert tasks.link_splits(splits, tmp_path / "three") != before


def test_autogluon_is_refused_where_it_is_missing(capsys):
    with pytest.raises(SystemExit):
        anytime.arguments_of(["--quick", "--autogluon", sys.executable])
    assert "cannot import autogluon.multimodal (ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_runs_both_arms_once(tmp_path, capfd):
    words = ["--quick", "--results", str(tmp_path / "runs.jsonl"), "--json", str(tmp_path / "figures.json")]
    assert anytime.main(words) == 0
    runs = {run.arm: run for run in anytime.read(tmp_path / "runs.jsonl")}
    assert sorted(runs) == ["ours", "usual"]
    assert runs["ours"].facts["splits"] == runs["usual"].facts["splits"]
    assert runs["ours"].exit_status == 0, runs["ours"].last_lines
    last = runs["ours"].versions[-1].right  # the usual script may have no model yet on a busy machine
    assert last.count("1") > 2 * runs["ours"].guess.count("1")
    before, told = capfd.readouterr().out, json.loads((tmp_path / "figures.json").read_text())
    assert [each["seconds"] for each in told["data"][tasks.DIGITS]["leads"]["usual"]] == [15, 30]
    assert anytime.main(words) == 0
    assert len(anytime.read(tmp_path / "runs.jsonl")) == 2
    assert capfd.readouterr().out == before
