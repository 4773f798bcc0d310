"""From pixels of any height and width to a network's input, as a module that can be exported."""

import torch  # no postponed annotations: TorchScript reads them
from torch import Tensor, nn

from delta_tune.data.augmentation import center_offset
from delta_tune.data.images import Preprocessing
from delta_tune.export.resampling import SUPPORT, as_size, blocks_of, rounded_sum, windows


class Preparation(nn.Module):
    """uint8 (N, H, W, C) to normalised float32 (N, C, S, S): what `stored_square` and `center_crop` make of the images.

    All images of a batch have the same height and width, ≥ 1. An image that `fit` leaves as it is stays as it is: one
    of `stored_size` × `stored_size` where images are cropped, else one of `image_size` × `image_size`.

    Pillow ≥ 13 begins with the rows where the height shrinks by more than twice as many pixels as the width, else with
    the columns. The side that it begins with is called the outer one here, and is the first axis of what is computed.
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
        count, outputs = self.blocks
        size = torch.zeros(2, dtype=torch.float64, device=images.device)
        height, width = size[0] + images.shape[1], size[1] + images.shape[2]
        rows, columns = self._side(height, width), self._side(width, height)
        shrunk_height, shrunk_width = height - rows[3], width - columns[3]
        rows_outer = (shrunk_height > 0) & (shrunk_height > shrunk_width * 2)
        outer, inner = torch.where(rows_outer, rows, columns), torch.where(rows_outer, columns, rows)
        outer_pixels, outer_weights = windows(outer, self.blocks, self.support)
        inner_pixels, inner_weights = windows(inner, self.blocks, self.support)
        lines = self._lines(images, outer[0], inner[0], rows_outer)
        seen = lines.index_select(1, outer_pixels.flatten()).unflatten(1, (count, outer_pixels.shape[1]))
        narrow = rounded_sum(torch.matmul(outer_weights, seen.to(torch.float32)), outputs).flatten(1, 2)[:, : self.size]
        # A line has its pixels one after the other, or its channels
        pixel_step = torch.where(rows_outer, self.channels, 1)
        channel_step = torch.where(rows_outer, size[0] + 1, inner[0]).to(torch.int64)
        places = inner_pixels.flatten()[:, None] * pixel_step + torch.arange(self.channels) * channel_step
        narrow = narrow.index_select(2, places.flatten()).unflatten(2, (count, inner_pixels.shape[1], self.channels))
        narrow = narrow.permute(0, 2, 3, 1, 4).flatten(3)
        square = rounded_sum(torch.matmul(inner_weights, narrow), outputs).flatten(1, 2)[:, : self.size]
        square = square.unflatten(2, (self.size, self.channels))
        square = torch.where(rows_outer, square.transpose(1, 2), square)
        if self.kind == "letterbox":
            shown = self._shown(rows)[:, None] & self._shown(columns)
            square = torch.where(shown[:, :, None], square, self.colour)
        return (square * self.factors + self.shifts).permute(0, 3, 1, 2).contiguous()

    def _lines(self, images: Tensor, outer: Tensor, inner: Tensor, rows_outer: Tensor) -> Tensor:
        """The pixels line by line, uint8 (N, outer, inner × C): rows as they are, or columns, channel by channel.

        Without a branch, which not every runtime knows: rows that are turned as one single column stay as they are.
        """
        one = torch.ones_like(outer)
        high, wide = (
            as_size(torch.where(rows_outer, one, inner)),
            as_size(torch.where(rows_outer, outer * inner, outer)),
        )
        turned = images.flatten(1, 2).unflatten(1, (high, wide)).permute(0, 2, 3, 1).contiguous()
        return turned.reshape(images.shape[0], as_size(outer), as_size(inner) * self.channels)

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
