"""Tune's run, with Tune replaced: signals and credentials."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from delta_tune.search import runner


@pytest.fixture
def before():
    """This process's handler of SIGINT."""
    found = signal.getsignal(signal.SIGINT)
    yield found
    signal.signal(signal.SIGINT, found)


def tune(*, signalled):
    """As Tune does: it takes its handler back at a signal only."""

    def fit():
        found = signal.signal(signal.SIGINT, lambda number, frame: None)
        if signalled:
            signal.signal(signal.SIGINT, found)

    return SimpleNamespace(fit=fit)


@pytest.mark.parametrize("signalled", [True, False])
def test_interrupt_is_known_and_the_handler_is_as_before(before, signalled, monkeypatch):
    monkeypatch.delenv(runner.NO_HANDLER, raising=False)
    assert runner._fit(tune(signalled=signalled)) == signalled
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_handler_of_tune_s_nothing_is_known(before, monkeypatch):
    monkeypatch.setenv(runner.NO_HANDLER, "1")
    assert not runner._fit(SimpleNamespace(fit=lambda: None))


def test_keys_of_the_environment_are_no_part_of_what_ray_writes_down(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "SEKRET")
    with runner._without_credentials():
        actor = class_cache._ActorClassCache().get(type("Trainable", (), {}))
    assert "SEKRET" not in str(actor._default_options)
    assert "AWS_ACCESS_KEY_ID" in class_cache.ENV_VARS_TO_PROPAGATE, "as before"


def test_trials_end_where_they_are_when_the_time_is_over(monkeypatch):
    killed = []
    monkeypatch.setattr(runner.ray, "kill", killed.append)
    live = {name: SimpleNamespace(temporary_state=SimpleNamespace(ray_actor=name)) for name in ("one", None)}
    seconds = [2.0]
    standing = SimpleNamespace(ends_in=lambda left: None)
    stopper = runner._Stopper(lambda: seconds[0], SimpleNamespace(out_of_room=None), standing, [], None, live)
    assert not stopper.stop_all()
    assert killed == []
    seconds[0] = -0.1
    assert stopper.stop_all()
    assert killed == ["one"]


def test_no_trial_starts_once_it_is_too_late():
    proposes, late = Searcher(), [False]
    proposes.suggest = lambda trial_id: {"lr": 0.1}
    limiter = runner._Limiter(proposes, SimpleNamespace(limit=2), (), None, lambda: late[0])
    assert limiter.suggest("one")["lr"] == 0.1
    late[0] = True
    assert limiter.suggest("two") == Searcher.FINISHED
