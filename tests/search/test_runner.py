"""Tune's run, with Tune replaced: signals and credentials."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
from ray.tune.execution import class_cache

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
