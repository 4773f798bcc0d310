import pickle

import numpy as np
import pytest

from delta_tune.data.names import Names, taken

WORDS = ("one", "", "zwölf", "two\nlines", "not UTF-8: \udcff \ud800 \x00", "three")


def test_names_are_a_sequence_of_the_same_strings():
    names = Names.of(WORDS)
    assert list(names) == list(WORDS)
    assert (names[-1], names[2], names.index("zwölf"), len(names)) == ("three", "zwölf", 2, 6)
    assert "" in names
    assert names[1:3] == WORDS[1:3]
    assert names[::-2] == WORDS[::-2]
    assert names.__add__(("four",)) == (*WORDS, "four")
    assert WORDS == names != WORDS[1:]
    with pytest.raises(IndexError):
        names[6]


def test_names_taken_twice_are_those_at_the_positions():
    names = taken(taken(Names.of(WORDS), np.array([5, 4, 4, 0])), [3, 1])
    assert names == ("one", WORDS[4])
    assert names.compact() == names
    assert taken(WORDS, [5, 0]) == ("three", "one")


def test_names_share_their_memory_and_take_little_of_it():
    names = Names.of(f"/data/photos/class-{i % 10}/{i:08}.jpg" for i in range(10_000))
    assert len(list(names)) == 10_000
    buffers = []
    stream = pickle.dumps(names.taken(np.arange(0, 10_000, 2)), protocol=5, buffer_callback=buffers.append)
    assert len(stream) < 1000
    assert sum(buffer.raw().nbytes for buffer in buffers) < 10_000 * 45 + 5_000 * 8
    assert pickle.loads(stream, buffers=buffers)[1] == names[2]
