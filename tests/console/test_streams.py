"""Output of any alphabet, into pipes that nobody reads, to files on full disks, and to no file at all."""

import io
import os
import subprocess
import sys

import pytest
from helpers.fuzz import cases
from helpers.names import NAMES
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.console.streams import encodable, tolerant, tolerant_output

PRINT = "from delta_tune.console.streams import tolerant_output\nwith tolerant_output():\n    "


@cases(150)
@given(NAMES, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8", "koi8-r", "utf-16"]))
def test_any_text_becomes_one_of_the_alphabet(text, encoding):
    encodable(text, encoding).encode(encoding)


def test_signs_become_similar_ones():
    assert encodable("9 × 9 ≥ 3 – ł", "ascii") == "9 x 9 >= 3 - \\u0142"
    assert encodable("9 × 9 ≥ 3 – ł", "utf-8") == "9 × 9 ≥ 3 – ł"


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise BrokenPipeError


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, Full(), closed()])
def test_what_cannot_be_written_is_dropped(stream):
    tolerated = tolerant(stream)
    print("text", file=tolerated, flush=True)
    assert not tolerated.isatty()


def test_what_can_be_written_is_written():
    stream = io.StringIO()
    print("text", file=tolerant(stream), flush=True)
    assert stream.getvalue() == "text\n"


def test_streams_are_the_old_ones_afterwards():
    before = sys.stdout, sys.stderr
    with pytest.raises(KeyError), tolerant_output():
        raise KeyError
    assert (sys.stdout, sys.stderr) == before


def run(shell, program):
    environment = os.environ | {"PROGRAM": PRINT + program, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("into", [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "| true"])
def test_program_ends_well_whatever_its_output_is(into):
    program = "print('x' * 100_000, flush=True); print('y'); import sys; print('z', file=sys.stderr)"
    done = run(f'"$PYTHON" -c "$PROGRAM" {into}; echo "${{PIPESTATUS[0]}}" >&2', program)
    assert done.stderr.split()[-1] == "0" if "2>&-" not in into else True
    assert "Exception ignored" not in done.stderr
    assert "Error" not in done.stderr


def test_files_do_not_take_the_place_of_a_closed_output(tmp_path):
    file = tmp_path / "file"
    done = run('"$PYTHON" -c "$PROGRAM" >&- 2>&-', f"f = open({str(file)!r}, 'w'); import os; os.system('echo child')")
    assert done.returncode == 0
    assert file.read_text() == ""
