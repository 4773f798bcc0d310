"""Homes of processes that have none, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from delta_tune.filesystem.home import provide_home

WITHOUT = """
import os, pathlib
def unknown(): raise RuntimeError("Could not determine home directory.")
home = pathlib.Path.home
pathlib.Path.home = lambda: home() if "HOME" in os.environ else unknown()
import delta_tune
print(os.environ["HOME"], oct(os.stat(os.environ["HOME"]).st_mode & 0o777))
"""


def test_process_without_a_home_has_a_private_one_until_it_ends():
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, check=True)
    home, mode = done.stdout.split()
    assert mode == "0o700"
    assert not Path(home).exists()


@pytest.mark.parametrize("home", ["/", "/no/such/home"])
def test_home_that_is_named_stays(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    provide_home()
    assert os.environ["HOME"] == home
