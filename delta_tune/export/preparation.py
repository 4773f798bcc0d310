"""From pixels of any height and width to a network's input, as a module that can be exported."""

import PIL
import torch  # no postponed annotations: TorchScript reads them
from torch import Tensor, nn

from delta_tune.data.fitting import center_offset
from delta_tune.data.images import Preprocessing
from delta_tune.export.resampling import SUPPORT, as_size, blocks_of, rounded_sum, windows

ROWS_MAY_BE_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
"""Whether this Pillow shrinks the height of some images first; earlier ones began with the width of all."""


class Preparation(nn.Module):
    """uint8 (N, H, W, C) to normalised float32 (N, C, S, S): what `stored_square` and `center_crop` make of the images.

    All images of a batch have the same height and width, ≥ 1. An image that `fit` leaves as it is stays as it is: one
    of `stored_size` × `stored_size` where images are cropped, else one of `image_size` × `image_size`.

    Pillow ≥ 13 shrinks the height first where it loses more than twice as many pixels as the width, else the width.
    What comes first shows in how pixels are rounded. The side that comes first is called the outer one here, and is the
    first axis of what is computed.
    """

    colour: Tensor
    factors: Tensor
    shifts: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.kind = preprocessing.resize
        self.size = preprocessing.image_size
        self.stored = preprocessing.stored_size
        self.margin = center_offset(self.stored, self.size)
        self.channels = preprocessing.channels
        self.support = SUPPORT[preprocessing.interpolation]
        self.blocks = blocks_of(self.size)
        self.least_shrunk = 0.0 if ROWS_MAY_BE_FIRST else float("inf")
        std = torch.tensor(preprocessing.std)
        colour = torch.tensor(preprocessing.mean_colour, dtype=torch.float32)
        self.register_buffer("colour", colour.view(-1, 1, 1))
        self.register_buffer("factors", (1 / (255 * std)).view(-1, 1, 1))
        self.register_buffer("shifts", (-torch.tensor(preprocessing.mean) / std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        count, outputs = self.blocks
        high, wide = images.shape[1], images.shape[2]
        zero = torch.zeros([], dtype=torch.float64, device=images.device)
        rows, columns = self._side(zero + high, zero + wide), self._side(zero + wide, zero + high)
        shrunk_height, shrunk_width = high - rows[3], wide - columns[3]
        rows_outer = (shrunk_height > self.least_shrunk) & (shrunk_height > shrunk_width * 2)
        outer, inner = torch.where(rows_outer, rows, columns), torch.where(rows_outer, columns, rows)
        outer_pixels, outer_weights = windows(outer, self.blocks, self.support)
        inner_pixels, inner_weights = windows(inner, self.blocks, self.support)
        seen = self._outer_first(images, outer[0], inner[0], rows_outer).index_select(1, outer_pixels.flatten())
        seen = torch.unflatten(seen, 1, (count, outer_pixels.shape[1])).to(torch.float32)
        narrow = rounded_sum(torch.matmul(outer_weights, seen), outputs).flatten(1, 2)[:, : self.size]
        seen = self._inner_first(narrow, inner[0], rows_outer).index_select(1, inner_pixels.flatten())
        seen = torch.unflatten(seen, 1, (count, inner_pixels.shape[1]))
        square = rounded_sum(torch.matmul(inner_weights, seen), outputs).flatten(1, 2)[:, : self.size]
        square = self._channels_first(square, rows_outer)
        if self.kind == "letterbox":
            square = torch.where(self._shown(rows)[:, None] & self._shown(columns), square, self.colour)
        return square * self.factors + self.shifts

    # Three changes of the order, each of which depends on the outer side. There is no branch, which not every runtime
    # knows: an axis is 1 where nothing is to be exchanged, and what is next to it has all the pixels.

    def _outer_first(self, images: Tensor, outer: Tensor, inner: Tensor, rows_outer: Tensor) -> Tensor:
        """(N, H, W, C) to (N, outer, inner × C), channels last if rows are the outer side, else before the pixels."""
        pixels = torch.zeros_like(outer, dtype=torch.int64) + images.shape[1] * images.shape[2]
        high = as_size(torch.where(rows_outer, torch.ones_like(inner), inner))
        wide = as_size(torch.where(rows_outer, pixels, outer.to(torch.int64)))
        turned = torch.unflatten(images.flatten(1, 2), 1, (high, wide)).permute(0, 2, 3, 1).contiguous()
        return turned.reshape(images.shape[0], as_size(outer), as_size(inner) * self.channels)

    def _inner_first(self, narrow: Tensor, inner: Tensor, rows_outer: Tensor) -> Tensor:
        """(N, S, inner × C) to (N, inner, S × C), channels last."""
        before = as_size(torch.where(rows_outer, torch.ones_like(inner), self.channels))
        after = as_size(torch.where(rows_outer, torch.ones_like(inner) * self.channels, 1))
        turned = torch.unflatten(narrow, 2, (before, as_size(inner), after)).permute(0, 3, 1, 2, 4).contiguous()
        return turned.reshape(narrow.shape[0], as_size(inner), self.size * self.channels)

    def _channels_first(self, square: Tensor, rows_outer: Tensor) -> Tensor:
        """(N, inner S, outer S × C) to (N, C, S, S)."""
        size = torch.full_like(rows_outer, self.size, dtype=torch.int64)
        inner = as_size(torch.where(rows_outer, size, torch.ones_like(size)))
        outer = as_size(torch.where(rows_outer, size, size * size))
        turned = torch.unflatten(square.flatten(1), 1, (inner, outer, self.channels)).permute(0, 3, 2, 1).contiguous()
        return turned.reshape(square.shape[0], self.channels, self.size, self.size)

    def _side(self, side: Tensor, other: Tensor) -> Tensor:
        """What `windows` takes for one side of the images."""
        start, end = torch.zeros_like(side), side
        if self.kind == "crop":
            whole = torch.floor(self.stored * side / torch.minimum(side, other))
            offset = torch.round((whole - self.stored) / 2)
            start, end = offset * side / whole, (offset + self.stored) * side / whole
            resized, first = start * 0 + self.stored, start * 0 + self.margin
        elif self.kind == "squash":
            resized, first = start + self.size, start
        else:
            resized = torch.clamp(torch.round(side / torch.maximum(side, other) * self.size), min=1)
            first = -torch.round((self.size - resized) / 2)
        return torch.stack([side, start, end, resized, first])

    def _shown(self, side: Tensor) -> Tensor:
        """Which of the S pixels of a side show the image, and not its border: bool (S,)."""
        pixels = side[4] + torch.arange(self.size, dtype=torch.float64, device=side.device)
        return (pixels >= 0) & (pixels < side[3])
