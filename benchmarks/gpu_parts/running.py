"""Run sections in another process, and go on with the next one where a section fails, hangs or ends that process.

A kernel that reads out of bounds spoils CUDA for the whole process: every call after it fails. So the sections after it
get a new one.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from gpu_parts.bench import Bench
from gpu_parts.record import Section


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section to run."""

    name: str
    run: Callable[[Bench, Section], None]
    """A function of a module: another process finds it by name."""
    weight: float = 1.0
    """Its share of the time, against the other sections'."""
    simulates: bool = True
    """Whether it can run on a simulated GPU."""


Opener = Callable[[], AbstractContextManager[Bench]]
"""Opens the bench, in the process that runs the sections."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long the sections may take, in seconds."""

    ends: float
    """When no further section starts, as `time.monotonic` counts, which is one for all processes."""
    start: float = 240.0
    """Until the bench is open: photos and weights are made."""
    grace: float = 60.0
    """Beyond twice its share of the time, until a section is ended."""


def run_parts(parts: Sequence[Part], opened: Opener, limits: Limits) -> Iterator[Section]:
    """The sections, in order, as they end."""
    left = list(parts)
    while left:
        if time.monotonic() >= limits.ends:
            yield from (Section(name=part.name, state="not run", notes=["No time was left."]) for part in left)
            return
        for section in _in_one_process(left, opened, limits):
            left.pop(0)
            yield section


def _in_one_process(parts: Sequence[Part], opened: Opener, limits: Limits) -> Iterator[Section]:
    """The sections of one process, which may end before the last of them; then the last one here says why."""
    receiver, sender = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=_work, args=(parts, opened, limits.ends, sender))
    process.start()
    sender.close()  # so that the end of the process is seen
    names, limit = iter([part.name for part in parts]), limits.start
    try:
        while True:
            if not receiver.poll(limit):
                yield _failed(next(names), f"it took more than {limit:.0f} s and was ended")
                return
            message = receiver.recv()
            if isinstance(message, Section):
                next(names)
                yield message
            elif isinstance(message, str):
                yield from (_failed(name, f"the benchmark cannot start: {message}") for name in names)
            elif message is None:
                return
            else:
                limit = 2 * message + limits.grace
    except EOFError:
        process.join()
        if name := next(names, None):
            yield _failed(name, f"its process ended with exit status {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def _failed(name: str, failure: str) -> Section:
    section = Section(name=name)
    section.fail(failure)
    return section


def _work(parts: Sequence[Part], opened: Opener, ends: float, pipe: Connection) -> None:
    """Send the sections of `sections_here`; before each the seconds that it should take, after the last None.

    If the bench cannot be opened, send why.
    """
    with ExitStack() as stack:
        try:
            bench = stack.enter_context(opened())
        except Exception as error:  # of any kind: it has to stand on the page
            pipe.send(f"{type(error).__name__}: {error}")
        else:
            for section in sections_here(parts, bench, ends, begin=pipe.send):
                pipe.send(section)
        pipe.send(None)


def sections_here(
    parts: Sequence[Part], bench: Bench, ends: float, begin: Callable[[float], None] = lambda _: None
) -> Iterator[Section]:
    """The sections, run in this process, until one has spoilt it.

    Args:
        parts: the sections.
        bench: what they work with.
        ends: when they should all have ended, as `time.monotonic` counts.
        begin: called before each with the seconds that it should take.
    """
    weights = [part.weight for part in parts]
    for i, part in enumerate(parts):
        start = time.monotonic()
        share = max(0.0, ends - start) * part.weight / sum(weights[i:])
        bench.ends = start + share
        begin(share)
        section = Section(name=part.name)
        try:
            part.run(bench, section)
        except Exception as error:  # of any kind: it must not take the other sections with it
            section.end_with(error)
        section.seconds = time.monotonic() - start
        yield section
        if section.failures and not _works(bench.device):
            return


def _works(device: torch.device) -> bool:
    """Whether this process can still use the device."""
    try:
        return float(torch.ones(2, device=device).sum()) == 2
    except RuntimeError:
        return False
