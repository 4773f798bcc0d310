"""Layouts of outputs, against loops over images, channels and positions."""

import pytest
import torch

from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout, named_parts

LAYOUTS = {
    "channels first": (CHANNELS_FIRST, (2, 3, 4, 4)),
    "channels last": (MapLayout(channels_last=True), (2, 4, 4, 3)),
    "tokens": (MapLayout(channels_last=True), (2, 16, 3)),
    "class token": (MapLayout(channels_last=True, prefix_tokens=1), (2, 17, 3)),
    "registers": (MapLayout(channels_last=True, prefix_tokens=5), (2, 21, 3)),
    "windows": (MapLayout(channels_last=True, in_order=False), (2, 4, 9, 3)),
}


@pytest.fixture(params=LAYOUTS)
def given(request):
    layout, shape = LAYOUTS[request.param]
    return layout, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def values_of(layout, output, image, channel):
    """All values of a channel, in memory's order."""
    one = output[image]
    return (one.flatten(0, -2)[:, channel] if layout.channels_last else one[channel].flatten()).tolist()


def test_parts_hold_every_value_once_prefix_tokens_apart(given):
    layout, output = given
    parts = layout.parts(output)
    assert [part.ndim for part in parts] == [4] * (2 if layout.prefix_tokens else 1)
    for image in range(2):
        for channel in range(3):
            expected = values_of(layout, output, image, channel)
            first = layout.prefix_tokens
            assert parts[0][image, channel].flatten().tolist() == expected[first:]
            if first:
                assert parts[1][image, channel].flatten().tolist() == expected[:first]


def test_parts_are_views(given):
    layout, output = given
    for part in layout.parts(output):
        assert part.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()


def test_parts_without_prefix_tokens_have_no_gaps(given):
    layout, output = given
    (positions, *others) = layout.parts(output)
    memory = torch.channels_last if layout.channels_last else torch.contiguous_format
    assert positions.is_contiguous(memory_format=memory) == (not others)


def test_switch_off_zeroes_one_channel_of_a_copy(given):
    layout, output = given
    before = output.clone()
    changed = layout.switch_off(output, 1)
    assert torch.equal(output, before)
    for image in range(2):
        assert set(values_of(layout, changed, image, 1)) == {0.0}
        for channel in (0, 2):
            assert values_of(layout, changed, image, channel) == values_of(layout, output, image, channel)


def test_sum_positions_adds_positions_and_prefix_tokens(given):
    layout, output = given
    expected = [[sum(values_of(layout, output, image, channel)) for channel in range(3)] for image in range(2)]
    torch.testing.assert_close(layout.sum_positions(output), torch.tensor(expected))
    assert layout.channels_of(output) == 3


@pytest.mark.parametrize("name", ["tokens", "class token", "registers"])
def test_squares_of_tokens_come_row_by_row(name):
    layout, shape = LAYOUTS[name]
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    squares = layout.squares(output)
    assert squares.shape == (2, 3, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(squares[..., row, column], output[:, layout.prefix_tokens + 4 * row + column])


def test_squares_of_maps_are_the_maps():
    output = torch.randn(2, 4, 4, 3)
    assert torch.equal(MapLayout(channels_last=True).squares(output), output.permute(0, 3, 1, 2))
    assert CHANNELS_FIRST.squares(output.permute(0, 3, 1, 2)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (MapLayout(channels_last=True), (2, 15, 3)),
        (MapLayout(channels_last=True, prefix_tokens=2), (2, 17, 3)),
        (MapLayout(channels_last=True, in_order=False), (2, 16, 3)),
        (MapLayout(channels_last=True, in_order=False), (2, 4, 9, 3)),
        (CHANNELS_FIRST, (2, 3, 4, 5)),
    ],
)
def test_positions_that_are_no_square_in_order_have_no_picture(layout, shape):
    assert layout.squares(torch.zeros(shape)) is None


def test_named_parts_of_a_layer_without_a_layout_are_its_output():
    outputs = {"conv": torch.zeros(2, 3, 4, 4), "block": torch.zeros(2, 17, 3)}
    parts = named_parts(outputs, {"block": MapLayout(channels_last=True, prefix_tokens=1)})
    assert parts["conv"] is outputs["conv"]
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "conv": (2, 3, 4, 4),
        "block": (2, 3, 16, 1),
        "block:prefix": (2, 3, 1, 1),
    }
