"""From pixels of any height and width to a network's input, as a module that can be exported."""

import torch
from torch import Tensor, nn

from delta_tune.data.augmentation import center_offset
from delta_tune.data.images import Preprocessing
from delta_tune.export.resampling import SUPPORT, blocks_of, rounded_sum, windows


class Preparation(nn.Module):
    """uint8 (N, H, W, C) to normalised float32 (N, C, S, S): the same pixels that `stored_square` and `center_crop` give.

    All images of a batch have the same height and width, ≥ 1. An image that `fit` would leave as it is stays as it is:
    one of `stored_size` × `stored_size` where images are cropped, else of `image_size` × `image_size`.
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
        std = torch.tensor(preprocessing.std)
        self.register_buffer("colour", torch.tensor(preprocessing.mean_colour, dtype=torch.float32))
        self.register_buffer("factors", 1 / (255 * std))
        self.register_buffer("shifts", -torch.tensor(preprocessing.mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[1], images.shape[2]
        rows, columns = self._resized(height, width, images), self._resized(width, height, images)
        # Which pass Pillow 13 and later make first, which shows in what is rounded
        rows_first = ((height - rows) > 0) & ((height - rows) > (width - columns) * 2)
        if torch.jit.is_scripting():
            square = self._rows_first(images) if bool(rows_first) else self._columns_first(images)
        else:
            square = self._in_order(rows_first, images)
        if self.kind == "letterbox":
            row_shown, column_shown = self._shown(rows), self._shown(columns)
            square = torch.where((row_shown[:, None] & column_shown)[:, :, None], square, self.colour)
        return (square * self.factors + self.shifts).permute(0, 3, 1, 2).contiguous()

    def _in_order(self, rows_first: Tensor, images: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            square: Tensor = torch.cond(rows_first, self._rows_first, self._columns_first, (images,))
            return square
        return self._rows_first(images) if rows_first else self._columns_first(images)

    def _rows_first(self, images: Tensor) -> Tensor:
        return self._columns_first(images.transpose(1, 2)).transpose(1, 2).contiguous()

    def _columns_first(self, images: Tensor) -> Tensor:
        """The S × S square that the network sees, float32 (N, S, S, C) of whole numbers, still without a border."""
        count, outputs = self.blocks
        height, width = images.shape[1], images.shape[2]
        rows, row_weights = self._windows(height, width, images)
        columns, column_weights = self._windows(width, height, images)
        high, wide = rows.shape[1], columns.shape[1]
        # Images lie on their side, so that what is gathered lies together
        sides = images.index_select(1, rows.flatten()).transpose(1, 2).contiguous()
        seen = sides.index_select(1, columns.flatten())
        seen = seen.flatten(2).unflatten(1, (count, wide)).to(torch.float32)
        narrow = rounded_sum(torch.matmul(column_weights, seen), outputs).flatten(1, 2)[:, : self.size]
        narrow = narrow.unflatten(2, (count, high, self.channels)).permute(0, 2, 3, 1, 4).flatten(3)
        square = rounded_sum(torch.matmul(row_weights, narrow), outputs).flatten(1, 2)[:, : self.size]
        return square.unflatten(2, (self.size, self.channels)).contiguous()

    def _resized(self, side: int, other: int, images: Tensor) -> Tensor:
        """Pixels of a side as Pillow is asked for them, a scalar."""
        zero = torch.zeros([], dtype=torch.float64, device=images.device)
        if self.kind == "crop":
            return zero + self.stored
        if self.kind == "squash":
            return zero + self.size
        return torch.clamp(torch.round((zero + side) / (zero + _larger(side, other)) * self.size), min=1)

    def _first(self, resized: Tensor) -> Tensor:
        """Which pixel of the resized side is the first of the S that the network sees; below 0 with a border."""
        if self.kind == "letterbox":
            return -torch.round((self.size - resized) / 2)
        return torch.zeros_like(resized) + (self.margin if self.kind == "crop" else 0)

    def _shown(self, resized: Tensor) -> Tensor:
        """Which of the S pixels of a side show the image, bool (S,)."""
        pixels = self._first(resized) + torch.arange(self.size, dtype=torch.float64, device=resized.device)
        return (pixels >= 0) & (pixels < resized)

    def _windows(self, side: int, other: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `windows`, for one side of images."""
        resized = self._resized(side, other, images)
        start, end = torch.zeros_like(resized), torch.zeros_like(resized) + side
        if self.kind == "crop":
            whole = torch.floor(self.stored * end / _smaller(side, other))
            offset = torch.round((whole - self.stored) / 2)
            start, end = offset * end / whole, (offset + self.stored) * end / whole
        return windows(side, start, end, resized, self._first(resized), self.blocks, self.support)


def _smaller(one: int, other: int) -> int:
    if torch.jit.is_scripting():
        return min(one, other)
    return torch.sym_min(one, other)


def _larger(one: int, other: int) -> int:
    if torch.jit.is_scripting():
        return max(one, other)
    return torch.sym_max(one, other)
