"""The report of a study whose names are hostile: nothing on the page is an element or an address of theirs."""

from __future__ import annotations

import dataclasses
import html
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers import browser
from helpers.fuzz import cases
from helpers.names import NAMES
from helpers.studies import MAX_EPOCHS, attention_file, epoch_row, level, study_json, tables_in
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json

from delta_tune.config import TrialConfig, as_utf8, visible
from delta_tune.report import page as page_module
from delta_tune.report.predictions import read_predictions, save_predictions
from delta_tune.results.layout import PREDICTIONS_FILE, REPORT_FILE

SEVEN_NAMES = st.lists(NAMES, min_size=7, max_size=7, unique=True)


def write_study(folder, task, names):
    """A study with these names wherever a user or the data may have some; its page."""
    first, second, third, helper, error, data, space = names
    helper = as_utf8(helper)  # a space's own text is UTF-8
    folder.mkdir(exist_ok=True)
    distributions = {
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        f"_{helper}": CategoricalDistribution([first, second]),
    }
    study_json(
        folder,
        name=f"study {data}".replace("/", " "),
        winner=0,
        space=space,
        command=["launch.py", "--data", data],
        distributions={name: json.loads(distribution_to_json(each)) for name, each in distributions.items()},
        attention_verdict=space,
    )
    tables = tables_in(folder)
    for number in range(12):
        params = {"lr": 0.001 * (number + 1), f"_{helper}": (first, second)[number % 2]}
        tables.add(
            number, TrialConfig(regularizer="l2", lr=params["lr"], max_epochs=MAX_EPOCHS), params, {helper: first}
        )
        tables.start(number, "node", 1.7e9 + 10 * number, 0.1)
        for epoch in range(1, MAX_EPOCHS + 1):
            tables.report(number, epoch_row(epoch, level(params["lr"]) * (1 - 0.5**epoch)), 1.7e9 + 10 * number + epoch)
        tables.finish(number, "completed", error)
    tables.write()
    attention = folder / "attention"
    if not attention.exists():
        attention_file(folder)
    test = dataclasses.replace(task.dataset.test, names=tuple([space, error, *task.dataset.test.names][:-2]))
    dataset = dataclasses.replace(task.dataset, classes=(first, second, third), test=test)
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (len(test), 3)).astype(np.float32))
    save_predictions(dataclasses.replace(task, dataset=dataset), "test", logits, folder / PREDICTIONS_FILE)
    return page_module.write_report(folder)


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, what is loaded, and the figures."""

    def __init__(self, text):
        super().__init__()
        self.found, self.loaded, self.figures, self._in_figure = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.found.append((tag, tuple(given)))
        self.loaded += [given[name] for name in ("src", "href", "action", "data", "style") if name in given]
        self._in_figure = given.get("type") == "application/json"

    def handle_data(self, data):
        if self._in_figure:
            self.figures.append(data)
            self._in_figure = False


def texts(value):
    """All texts of a figure that Plotly might read as HTML, apart from our own templates."""
    if isinstance(value, dict):
        for key, each in value.items():
            if key != "hovertemplate":
                yield from texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


@pytest.fixture
def written(tmp_path, task, monkeypatch):
    """A function from names to a study's folder, whose page lacks Plotly's own text: it is a hundred times as long."""
    monkeypatch.setattr(page_module, "get_plotlyjs", lambda: "")
    return lambda names: write_study(tmp_path / "study", task, names).parent


@cases(6)
@given(SEVEN_NAMES)
def test_page_has_no_element_and_no_address_of_a_name(written, names):
    usual = Elements((written(list("abcdefg")) / REPORT_FILE).read_text(encoding="utf-8"))
    text = (written(names) / REPORT_FILE).read_text(encoding="utf-8")
    odd = Elements(text)
    assert odd.found == usual.found
    assert all(address.startswith(("data:", "#")) for address in odd.loaded)
    assert text == visible(text, keep="\n\t\u00a0\u2009")
    assert len(odd.figures) == len(usual.figures) == 8
    for figure in odd.figures:
        for each in texts(json.loads(figure)):
            assert "<" not in each
    shown = {html.unescape(each) for figure in odd.figures for each in texts(json.loads(figure))}
    assert {visible(name) for name in names[:2]} <= shown


@cases(6)
@given(SEVEN_NAMES)
def test_predictions_of_any_names_can_be_read_again(written, names):
    found = read_predictions(written(names) / PREDICTIONS_FILE)
    assert found.confusion.sum() == 15
    assert found.confusion.shape == (3, 3)
    assert all(found.confusion.sum(1))


def test_classes_whose_escapes_are_equal_are_counted_apart(written):
    names = ["caf\udce9", "caf\\xe9", "c", "h", "e", "d", "s"]
    found = read_predictions(written(names) / PREDICTIONS_FILE)
    assert len(set(found.classes)) == 3
    assert all(found.confusion.sum(1))


@pytest.mark.browser
def test_browser_asks_nobody_for_anything_and_shows_the_names(tmp_path, task):
    if browser.CHROMIUM is None or browser.DRIVER is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    style = "<span style='fill:url(http://127.0.0.1:9/x)'>&lt;b&gt;</span>"
    names = [
        style,
        '<a href="http://127.0.0.1:9">a</a>',
        "caf\udce9 <b>c</b>",
        "h<b>",
        "<img src=http://127.0.0.1:9>",
        "d",
        "s",
    ]
    with browser.chromium() as opened:
        page = opened.open(write_study(tmp_path / "study", task, names))
        assert page.said == []
        asked = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
        assert not [address for address in asked if not address.startswith(("data:", "blob:"))]
        assert page.run("return document.querySelectorAll('.plot a').length") == 0
        ticks = page.run("return [...document.querySelectorAll('#plot-confusion .ytick text')].map(e => e.textContent)")
        assert sorted(ticks) == sorted(map(visible, names[:3]))
