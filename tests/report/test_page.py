from __future__ import annotations

import dataclasses
import json
import shlex

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import browser
from helpers.studies import (
    CLASSES,
    TWO_NETWORKS,
    add_trial,
    attention_file,
    random_trials,
    rename_method,
    study_json,
    tables_in,
    trials_of_two_networks,
)
from optuna.distributions import CategoricalDistribution, distribution_to_json

from delta_tune import background
from delta_tune.attention.layer_attention import LayerAttention, attention_table
from delta_tune.cli import launch
from delta_tune.config import TrialConfig, UserError
from delta_tune.report import page as page_module
from delta_tune.report import sentences
from delta_tune.report.predictions import save_predictions
from delta_tune.results.layout import ATTENTION_FILE, PREDICTIONS_FILE
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables

MIB = 2**20


def study(folder, fill, **settings):
    """A study's folder with these trials."""
    folder.mkdir(exist_ok=True)
    study_json(folder, **settings)
    tables = tables_in(folder)
    fill(tables)
    tables.write()
    return folder


def page(folder):
    return page_module.write_report(folder).read_text()


def one(tables):
    add_trial(tables, 0, "completed")


def two_methods(tables):
    for number, (method, lr) in enumerate([("delta", 0.01), ("l2", 0.01), ("l2", 0.001), ("delta", 0.05)]):
        add_trial(tables, number, "completed", method=method, lr=lr)


@pytest.fixture
def folder(tmp_path):
    return study(tmp_path / "study", two_methods)


def test_page_needs_no_network_and_is_small(folder):
    text = page(folder)
    assert len(text.encode()) < 8 * MIB
    own = text.replace(page_module.get_plotlyjs(), "")
    assert "http://" not in own
    assert "https://" not in own
    assert "src=" not in own.replace('src="data:', "")


def test_page_of_500_trials_is_small_enough(tmp_path):
    folder = study(tmp_path / "study", lambda tables: random_trials(tables, 500))
    assert page_module.write_report(folder).stat().st_size < 8 * MIB


def test_verdict_compares_the_best_of_each_method(folder):
    tables = StudyTables.read(folder, "val_accuracy")
    best = {
        method: max(tables.best_row(n)["val_accuracy"] for n in tables.ranked(method)) for method in ("delta", "l2")
    }
    assert sentences.study_verdict(tables, StudyRecord.read(folder)) == (
        f"delta: val_accuracy {100 * best['delta']:.1f} % on 50 images, plain l2 {100 * best['l2']:.1f} %: the best "
        f"trial of each, not confirmed."
    )


def test_verdict_is_the_confirmations_where_there_was_one(tmp_path):
    sentence = "Confirmed: delta 86.6 ± 1.3, l2 84.7 ± 2.2: +1.9 [-1.2, 5.0], 5 pairs."
    found = {"metric": "val_accuracy", "scores": {"delta": [0.9, 0.8], "l2": [0.7, 0.8]}, "trials": {"delta": 0}}
    folder = study(tmp_path / "study", two_methods, confirmation=found | {"sentences": ["Left out: x.", sentence]})
    assert f"<h1>{sentence}</h1>" in page(folder)
    assert sentences.study_remarks(StudyTables.read(folder, "val_accuracy"), StudyRecord.read(folder))[1:] == [
        "Left out: x."
    ]


@pytest.mark.parametrize(("finished", "sentence"), [(True, "was completed."), (False, "is completed yet.")])
def test_verdict_says_that_no_trial_was_completed(tmp_path, finished, sentence):
    folder = study(tmp_path / "study", lambda t: add_trial(t, 0, "failed", error="no"), finished=finished)
    assert f"No trial {sentence}" in page(folder)


def test_test_score_is_told_with_its_interval_and_how_often_it_was_taken(folder):
    assert (
        "Test accuracy of the final model (trial 0): 90.0 % on 60 images, scored once (95 % interval 80.0 to 95.0 %)."
    ) in page(folder)


def test_running_study_loads_itself_again_and_a_finished_one_does_not(tmp_path, folder):
    running = study(tmp_path / "running", one, finished=False)
    assert 'http-equiv="refresh"' in page(running)
    assert 'http-equiv="refresh"' not in page(folder).replace(page_module.get_plotlyjs(), "")


def test_interrupted_study_says_so_and_does_not_load_itself_again(tmp_path):
    folder = study(tmp_path / "study", one, finished=False, interrupted="2026-11-23T02:00:00+00:00")
    own = page(folder).replace(page_module.get_plotlyjs(), "")
    assert "interrupted 2026-11-23 02:00:00 UTC" in own
    assert "http-equiv" not in own


def test_running_study_shows_its_leader_and_a_finished_one_its_winner(tmp_path):
    for finished in (False, True):
        folder = study(tmp_path / f"{finished}", two_methods, finished=finished, winner=1)
        best = max(range(4), key=lambda n: tables_in(folder).read(folder, "val_accuracy").best_row(n)["val_accuracy"])
        expected = 1 if finished else best
        assert f'Best configuration <span class="quiet">trial {expected}</span>' in page(folder)


def test_what_users_write_is_no_html_of_the_page(tmp_path):
    nasty = "</script><script>alert(1)</script>"
    folder = study(tmp_path / "study", lambda t: add_trial(t, 0, "failed", error=nasty), name="<b>&")
    own = page(folder).replace(page_module.get_plotlyjs(), "")
    assert nasty not in own
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in own


def test_command_fine_tunes_with_the_winners_configuration(folder):
    tables = StudyTables.read(folder, "val_accuracy")
    words = shlex.split(page_module.training_command(tables, StudyRecord.read(folder), tables.leader))
    assert words[:2] == ["python", "launch.py"]
    flags = vars(launch.parser().parse_args(words[2:]))
    assert (flags["data"], flags["model"], flags["num_trials"]) == ("photos", "resnet50", 1)
    config = tables.config(tables.leader)
    assert dict(text.split("=") for text in flags["set"]) == {
        "regularizer": config.regularizer,
        "lr": str(config.lr),
        "alpha": str(config.alpha),
    }


def test_page_of_a_study_whose_best_method_is_none_of_ours_is_written(tmp_path):
    def newer_than_us(tables):
        two_methods(tables)
        rename_method(tables, "delta", "newer")

    folder = study(tmp_path / "study", newer_than_us)
    tables = StudyTables.read(folder, "val_accuracy")
    assert tables.trials[tables.leader]["config.regularizer"] == "newer"
    own = page(folder).replace(page_module.get_plotlyjs(), "")
    assert "regularizer=&#39;newer&#39;" in own
    assert "newer: val_accuracy" in own
    assert own.count('"name":"newer"') == 3  # points, curves, timeline


def test_command_names_the_method_that_a_trial_ran_with_without_attention(folder):
    tables = StudyTables.read(folder, "val_accuracy")
    tables.trials[0]["config.regularizer"] = "delta_uniform"
    command = page_module.training_command(tables, StudyRecord.read(folder), 0)
    assert "regularizer=delta_uniform" in command
    assert "regularizer=delta " not in command


def test_python_gives_the_winners_configuration(folder):
    tables = StudyTables.read(folder, "val_accuracy")
    text = page_module.training_call(tables, tables.leader)
    assert text.startswith("delta_tune.TrialConfig(")
    given = [line.strip(" ,").split("=") for line in text.splitlines()[1:-1]]
    values = {name: json.loads(v.replace("'", '"').replace("True", "true")) for name, v in given}
    assert TrialConfig(**values) == tables.config(tables.leader)


def test_reporter_tells_once_that_the_page_cannot_be_made_and_goes_on(tmp_path):
    said = []
    reporter = page_module.ReportWriter(tmp_path, said.append)
    assert reporter.write() is None
    assert reporter.write() is None
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'report.html'} cannot be written (UserError: There is no study in ")


def test_reporter_keeps_to_its_share_of_the_time(folder, monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr(background.time, "monotonic", lambda: now[0])

    def slow(folder):
        now[0] += 2.0
        made.append(now[0])

    monkeypatch.setattr(page_module, "write_report", slow)
    reporter = page_module.ReportWriter(folder, print)
    while now[0] < 1000:
        reporter.now_and_then()
        now[0] += 1
    assert 2.0 * len(made) <= page_module.SHARE * 1000 + 2.0
    assert len(made) >= 9


def test_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UserError, match="no study"):
        page_module.write_report(tmp_path)


@pytest.fixture(scope="module")
def opened():
    if browser.CHROMIUM is None or browser.DRIVER is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    with browser.chromium() as page:
        yield page


@pytest.fixture
def whole(tmp_path, task):
    """A study with everything that a page can show."""
    folder = study(tmp_path / "study", lambda tables: random_trials(tables, 60))
    attention_file(folder)
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (len(task.dataset.test), 3)).astype(np.float32))
    save_predictions(task, "test", logits, folder / PREDICTIONS_FILE)
    return page_module.write_report(folder)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_browser_shows_every_plot_without_a_complaint_and_without_scrolling_aside(opened, whole, width, dark):
    page = opened.open(whole, width=width, dark=dark)
    assert page.said == []
    names = ("methods", "curves", "pairs", "parallel", "importances", "attention", "confusion", "timeline")
    marks = page.marks()
    assert marks.keys() == {f"plot-{name}" for name in names}
    assert all(marks.values()), marks
    assert page.run("return document.documentElement.scrollWidth") == width


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_browser_text_of_plots_has_the_pages_colour(opened, whole, dark):
    page = opened.open(whole, dark=dark)
    text = page.run("return getComputedStyle(document.body).color")
    plots = page.run(
        "return [...document.querySelectorAll('.plot .xtick text')].map(each => getComputedStyle(each).fill)"
    )
    assert set(plots) == {text}
    assert (sum(map(int, text.strip("rgb()").split(","))) > 380) == dark


@pytest.mark.browser
def test_browser_sorts_a_table_by_its_headings(opened, whole):
    page = opened.open(whole)
    for click in ("ascending", "descending"):
        page.click("#trials th:nth-child(3) button")
        scores = [float(text.strip(" %")) for text in page.column("#trials", 2) if text]
        assert len(set(scores)) > 10
        assert scores == sorted(scores, reverse=click == "descending")
        assert page.run("return document.querySelector('#trials th:nth-child(3)').ariaSort") == click
    page.click("#trials th:nth-child(2) button")
    assert page.column("#trials", 1) == sorted(page.column("#trials", 1))


@pytest.mark.browser
def test_browser_copies_the_command(opened, whole):
    page = opened.open(whole)
    page.click("#best button.copy")
    assert page.run("return getSelection().toString()").startswith("python launch.py")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("fill", "plots"),
    [
        (one, {"methods", "curves", "pairs", "timeline"}),
        (lambda tables: add_trial(tables, 0, "failed", error="<i>no</i>"), set()),
        (lambda tables: None, set()),
        (
            lambda tables: random_trials(tables, 500),
            {"methods", "curves", "pairs", "parallel", "importances", "timeline"},
        ),
    ],
    ids=["one", "failed", "none", "500"],
)
def test_browser_shows_a_study_of_any_size(opened, tmp_path, fill, plots):
    folder = study(tmp_path / "study", fill, test=False)
    page = opened.open(page_module.write_report(folder))
    assert page.said == []
    assert page.marks().keys() == {f"plot-{name}" for name in plots}
    assert all(page.marks().values())


@pytest.mark.browser
def test_browser_shows_names_of_classes_as_they_are(opened, tmp_path, task):
    named = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, classes=CLASSES))
    folder = study(tmp_path / "study", one)
    logits = torch.zeros(len(task.dataset.test), 3)
    save_predictions(named, "test", logits, folder / PREDICTIONS_FILE)
    page = opened.open(page_module.write_report(folder))
    assert sorted(page.column("#predictions", 0)) == sorted(CLASSES)


def test_page_of_a_study_of_two_networks_names_them_and_that_of_each_trial(tmp_path):
    folder = study(tmp_path / "study", trials_of_two_networks, backbones=TWO_NETWORKS, backbone="one, the <b>other</b>")
    rows = [("l", LayerAttention(losses=np.array([1, 2], np.float32), reliability=0.9, images=3))] * 2
    (folder / ATTENTION_FILE).parent.mkdir()
    pq.write_table(attention_table(rows, ["one", "the <b>other</b>"]), folder / ATTENTION_FILE)
    content = json.loads((folder / "study.json").read_text())
    choice = CategoricalDistribution(["one", "the <b>other</b>"])
    content["distributions"]["backbone"] = json.loads(distribution_to_json(choice))
    (folder / "study.json").write_text(json.dumps(content))
    text = page(folder).replace(page_module.get_plotlyjs(), "")
    assert "the <b>other" not in text
    assert "model of one, weights default; model of the &lt;b&gt;other" in text
    assert "<th><button>backbone</button></th>" in text
    assert text.count('<td data-value="one">one</td>') == 6
    assert "<th><button>network</button></th>" in text
    assert "<td>the &lt;b&gt;other&lt;/b&gt;</td>" in text


def test_command_takes_the_winners_network_alone(tmp_path):
    folder = study(tmp_path / "study", trials_of_two_networks, backbones=TWO_NETWORKS)
    tables, record = StudyTables.read(folder, "val_accuracy"), StudyRecord.read(folder)
    command = page_module.training_command(tables, record, 1)
    assert "--model 'model of the <b>other</b>'" in command
    assert "backbone" not in command.replace("--model", "")


def test_command_of_a_space_that_names_the_network_sets_it(tmp_path):
    folder = study(tmp_path / "study", trials_of_two_networks, backbones=TWO_NETWORKS)
    tables, record = StudyTables.read(folder, "val_accuracy"), StudyRecord.read(folder)
    tables.trials[1]["suggested"] = json.dumps({"backbone": "the <b>other</b>", "lr": 0.01})
    command = page_module.training_command(tables, record, 1)
    assert "--model resnet50" in command
    assert "--set 'backbone=the <b>other</b>'" in command


def test_page_says_what_the_channels_of_tokens_are(tmp_path, folder):
    told = "<b>blocks.1</b> (32). They hold a vector for each place of the image."
    tokens = page(study(tmp_path / "tokens", one, layers=told))
    assert "Hooked layers: &lt;b&gt;blocks.1&lt;/b&gt; (32). They hold a vector" in tokens
    assert "Hooked layers" not in page(folder)


def test_page_has_a_table_of_the_networks_that_were_screened(tmp_path):
    rows = [
        {"label": "<b>net</b>", "model": "resnet18", "weights": "a.pth", "kept": True, "verdict": "the best"},
        {"label": "vgg11", "model": "vgg11", "weights": None, "kept": False, "verdict": "too slow"},
    ]
    screening = {"networks": rows, "images": 30, "of": 100, "epochs": 6, "device": "CPU", "notes": ["Missing here: x"]}
    folder = study(tmp_path / "study", one, model="resnet18,vgg11", weights="a.pth")
    content = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(content | {"screening": screening}))
    text = page(folder)
    section = text.partition('<section id="screening">')[2].partition("</section>")[0]
    assert "&lt;b&gt;net&lt;/b&gt;" in section
    assert "<b>net" not in section
    assert section.count("<tr>") == 3
    assert "dropped: too slow" in section
    assert "Missing here: x" in section
    assert "--model resnet18 --weights a.pth" in text


def test_page_of_a_study_of_one_network_has_no_table_of_networks(folder):
    assert 'id="screening"' not in page(folder)
