"""The program for the day a GPU is there: it ends in simulation, tells what failed, and goes on."""

import json
import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
import gpu
from gpu_parts import bench as benches
from gpu_parts.record import Section, page
from gpu_parts.running import Limits, Part, run_parts, sections_here

from delta_tune.config import FIRST_MODEL, METHODS

SIMULATED = [part for part in gpu.PARTS if part.simulates and part.name != "packings"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens the bench on a simulated GPU."""
    return partial(gpu.opened_in_simulation, tmp_path_factory.mktemp("gpu"), gpu.TINY)


@pytest.fixture(scope="module")
def simulated(opened):
    """Every section that a simulated GPU can run, by name."""
    with opened() as bench:
        return {section.name: section for section in sections_here(SIMULATED, bench, ends=0.0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [part.name for part in SIMULATED])
def test_a_section_passes_on_a_simulated_gpu(simulated, name):
    assert simulated[name].failures == [], simulated[name].traceback
    assert simulated[name].state == "passed"
    assert simulated[name].rows


@pytest.mark.slow
def test_every_method_is_compared(simulated):
    methods = METHODS.keys() - {FIRST_MODEL}
    assert {row["method"] for row in simulated["gradients"].rows} == methods
    for name in ("trials", "epochs"):
        assert {row["method"] for row in simulated[name].rows} == methods | {"l2, averaged"}


@pytest.mark.slow
def test_the_penalties_take_part_in_the_gradients(simulated):
    """A target at the source has none: then the benchmark would compare L2 with itself."""
    losses = {row["method"]: row["loss"] for row in simulated["gradients"].rows if row["precision"] == "float32"}
    assert len({round(loss, 4) for loss in losses.values()}) >= 4, losses


@pytest.mark.slow
def test_attention_without_plans_fails(opened, monkeypatch):
    """The mistake that the section is for: on a GPU no plan agreed with the model, and nobody was told."""
    with opened() as bench:
        monkeypatch.setattr("delta_tune.attention.ablation._TOLERANCE", -1.0)
        (part,) = (part for part in SIMULATED if part.name == "attention")
        (section,) = sections_here([part], bench, ends=0.0)
    assert section.state == "failed"
    assert "no plan: layer1.0.conv2" in section.failures[0]


class NoTask:
    device = torch.device("cpu")
    ends = 0.0


@contextmanager
def no_task():
    yield NoTask()


@contextmanager
def nothing_to_open():
    raise OSError("No space left on device")
    yield


def passes(bench, section):
    section.row(images_per_s=12.5)


def raises(bench, section):
    section.row(half=1)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def misses(bench, section):
    section.check(False, "the loss is 2, on the CPU 1")


def dies(bench, section):
    os._exit(9)


def hangs(bench, section):
    time.sleep(600)


def parts_of(*runs):
    return [Part(name=run.__name__, run=run) for run in runs]


def states(sections):
    return [(section.name, section.state) for section in sections]


def test_a_section_that_fails_does_not_stop_the_others():
    first, second, third = sections_here(parts_of(raises, misses, passes), NoTask(), ends=0.0)
    assert (first.state, second.state, third.state) == ("failed", "failed", "passed")
    assert first.rows == [{"half": 1}]
    assert first.failures == ["RuntimeError: CUDA error: an illegal memory access was encountered"]
    assert "in raises" in first.traceback


@pytest.mark.slow
def test_a_section_that_ends_its_process_does_not_stop_the_others():
    found = list(run_parts(parts_of(dies, passes), no_task, Limits(ends=time.monotonic() + 600)))
    assert states(found) == [("dies", "failed"), ("passes", "passed")]
    assert found[0].failures == ["its process ended with exit status 9"]


@pytest.mark.slow
def test_a_section_that_hangs_does_not_stop_the_others():
    parts = [Part(name="hangs", run=hangs, weight=1e-6), *parts_of(passes)]
    found = list(run_parts(parts, no_task, Limits(ends=time.monotonic() + 600, grace=2.0)))
    assert states(found) == [("hangs", "failed"), ("passes", "passed")]
    assert "it took more than 2 s and was ended" in found[0].failures[0]


def test_a_device_that_is_spoilt_ends_the_process_after_the_section(monkeypatch):
    monkeypatch.setattr("gpu_parts.running._works", lambda device: False)
    assert states(sections_here(parts_of(passes, misses, passes), NoTask(), ends=0.0)) == [
        ("passes", "passed"),
        ("misses", "failed"),
    ]


@pytest.mark.slow
def test_a_bench_that_cannot_be_opened_fails_every_section_with_the_reason():
    found = list(run_parts(parts_of(passes, misses), nothing_to_open, Limits(ends=time.monotonic() + 60)))
    assert states(found) == [("passes", "failed"), ("misses", "failed")]
    assert all("No space left on device" in section.failures[0] for section in found)


def test_no_section_starts_after_the_time():
    found = list(run_parts(parts_of(passes), no_task, Limits(ends=time.monotonic() - 1)))
    assert states(found) == [("passes", "not run")]


def test_shorter_time_means_fewer_turns():
    bench = benches.Bench(device=torch.device("cpu"), sizes=gpu.TINY, task=None, few=None, settings={})
    bench.ends = time.monotonic() - 1
    assert list(bench.turns()) == [0, 1]
    bench.ends = time.monotonic() + 600
    assert len(list(bench.turns())) == benches.MOST_TURNS


def result_of(*sections):
    return {"facts": {"GPU": "NVIDIA H100"}, "sections": [vars(section) for section in sections]}


def test_the_page_has_a_table_a_section_and_what_failed_first():
    good, bad = Section(name="epochs", seconds=12.0), Section(name="memory")
    good.row(method="l2", images_per_s=2512.34)
    good.row(method="delta", images_per_s=2101.0, note="a | b\nc")
    bad.fail("a process got twice the memory of its cap")
    text = page(json.loads(json.dumps(result_of(good, bad))))
    assert text.index("- failed: memory") < text.index("- passed: epochs") < text.index("## epochs: passed, 12.0 s")
    assert "| method | images per s | note |\n|---|---|---|\n| l2 | 2512 |  |\n| delta | 2101 | a \\| b c |" in text
    assert "- **failed**: a process got twice the memory of its cap" in text


def test_the_program_writes_json_and_page_and_says_by_its_status_that_a_section_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PARTS", (*parts_of(misses, passes), Part(name="real", run=passes, simulates=False)))
    monkeypatch.setattr(gpu, "run_parts", lambda parts, opened, limits: sections_here(parts, NoTask(), limits.ends))
    assert gpu.main(["--simulate", "--out", str(tmp_path)]) == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {section["name"]: section["state"] for section in result["sections"]} == {
        "misses": "failed",
        "passes": "passed",
        "real": "not run",
    }
    assert (tmp_path / "gpu.md").read_text() == capsys.readouterr().out == page(result)
    assert gpu.main(["--simulate", "--out", str(tmp_path), "--sections", "passes"]) == 0


@pytest.mark.slow
def test_packings_in_processes_of_their_own(opened):
    (part,) = (part for part in gpu.PARTS if part.name == "packings")
    with opened() as bench:
        (section,) = sections_here([part], bench, ends=time.monotonic() + 60)
    assert section.failures == [], section.traceback
    assert all(row["images per s"] > 0 for row in section.rows)
