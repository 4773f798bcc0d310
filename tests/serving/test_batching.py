"""Images that come together are computed together, each gets its own row, and nothing is left behind."""

import asyncio
import threading

import numpy as np
import pytest
from helpers.requests import encoded

from delta_tune.config import UserError
from delta_tune.data.images import Preprocessing
from delta_tune.serving.batching import Batcher
from delta_tune.serving.metrics import Metrics
from delta_tune.serving.refusal import Busy
from delta_tune.serving.settings import Settings


class Counting:
    """A model whose probability is the grey value; it counts what it is given."""

    sha256, classes = "0", ("grey",)
    preprocessing = Preprocessing(image_size=4, stored_size=4, mean=(0,) * 3, std=(1,) * 3, interpolation="bilinear")

    def __init__(self, hold=None, error=None):
        self.sizes, self.hold, self.error = [], hold, error

    def probabilities(self, squares):
        if self.hold is not None:
            assert self.hold.wait(20)
        if self.error is not None:
            raise self.error
        self.sizes.append(len(squares))
        return squares[:, 0, 0, :1].astype(np.float32)


def grey(value):
    return encoded(np.full((4, 4, 3), value, dtype=np.uint8))


def run(model, use, **settings):
    """What `use` returns of a batcher that works."""

    async def main():
        batcher = Batcher(model, Settings(**settings), Metrics(model))
        batcher.start()
        try:
            return await use(batcher)
        finally:
            await batcher.close()

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_each_image_has_its_own_row():
    values = list(range(40))
    rows = run(Counting(), lambda batcher: batcher.probabilities([grey(v) for v in values]), threads=3, batch_size=4)
    assert [float(row[0]) for row in rows] == values


def test_images_of_several_requests_are_computed_together():
    model = Counting(hold=threading.Event())

    async def use(batcher):
        first = asyncio.create_task(batcher.probabilities([grey(0)]))  # the others wait for it
        await asyncio.sleep(0.3)
        others = [asyncio.create_task(batcher.probabilities([grey(v)])) for v in range(1, 6)]
        await asyncio.sleep(0.3)
        model.hold.set()
        return [float(rows[0][0]) for rows in await asyncio.gather(first, *others)]

    assert run(model, use, batch_size=4) == [0, 1, 2, 3, 4, 5]
    assert model.sizes == [1, 4, 1]


def test_lone_image_waits_for_no_other():
    async def use(batcher):
        start = asyncio.get_running_loop().time()
        await batcher.probabilities([grey(1)])
        return asyncio.get_running_loop().time() - start

    assert run(Counting(), use, batch_wait_s=20) < 10


def test_image_waits_for_those_that_are_being_decoded():
    model = Counting()
    run(model, lambda batcher: batcher.probabilities([grey(v) for v in range(4)]), batch_wait_s=20)
    assert model.sizes == [4]


def test_images_beyond_the_queue_are_refused_until_there_is_room():
    model = Counting(hold=threading.Event())

    async def use(batcher):
        first = asyncio.create_task(batcher.probabilities([grey(0), grey(1)]))
        await asyncio.sleep(0.2)
        with pytest.raises(Busy):
            await batcher.probabilities([grey(2), grey(3)])
        model.hold.set()
        await first
        return await batcher.probabilities([grey(2), grey(3)])

    assert [float(row[0]) for row in run(model, use, max_queue=3, max_images=2)] == [2, 3]


def test_unreadable_image_is_an_error_beside_the_rows_of_others():
    rows = run(Counting(), lambda batcher: batcher.probabilities([grey(1), b"damaged", grey(2)]))
    assert isinstance(rows[1], UserError)
    assert [float(rows[k][0]) for k in (0, 2)] == [1, 2]


def test_error_of_the_model_reaches_its_requests_and_the_next_are_answered():
    model = Counting(error=ArithmeticError("no finite numbers"))

    async def use(batcher):
        failed = await batcher.probabilities([grey(1), grey(2)])
        model.error = None
        return failed, await batcher.probabilities([grey(3)])

    failed, (row,) = run(model, use)
    assert [type(each) for each in failed] == [ArithmeticError] * 2
    assert row[0] == 3


def test_request_that_is_given_up_is_not_computed():
    model = Counting(hold=threading.Event())

    async def use(batcher):
        first = asyncio.create_task(batcher.probabilities([grey(0)]))
        await asyncio.sleep(0.2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.probabilities([grey(1), grey(2)]), 0.2)
        model.hold.set()
        await first
        return await batcher.probabilities([grey(3)])

    assert run(model, use, max_queue=3, max_images=2)[0][0] == 3
    assert model.sizes == [1, 1]
