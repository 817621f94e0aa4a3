"""How do stored uint8 images become a network's input? Normalized, cropped and flipped as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of each channel, of the values divided by 255.

    Args:
        images: uint8, shape ``(n, channels, height, width)``.

    Returns:
        ``(mean, std)``, float32 of shape ``(channels,)`` on the images' device; exact but for rounding, since
        they come from counts of the 256 values.

    Raises:
        ValueError: If there are no pixels, or a channel is constant and so cannot be scaled.
    """
    _check_uint8("channel_stats", images)
    if not images.numel():
        raise ValueError(f"channel_stats: images of shape {tuple(images.shape)} have no pixels; give some.")
    channels = range(images.shape[1])
    counts = torch.stack([torch.bincount(images[:, c].reshape(-1), minlength=256) for c in channels])
    share = counts.cpu().double() / (images.numel() // images.shape[1])
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share * (level - mean[:, None]).square()).sum(1).sqrt()
    if constant := (std == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"channel_stats: channel(s) {constant} are constant; give images that vary in each, or divide by 255 only: "
            "pixels='unit'."
        )
    return mean.float().to(images.device), std.float().to(images.device)


def normalize(images: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> Tensor:
    r"""Images as a network reads them.

    .. math:: x = \frac{\mathrm{images}/255 - \mathrm{mean}}{\mathrm{std}}

    Args:
        images: uint8, shape ``(n, channels, height, width)``.
        mean: One value a channel, of the images divided by 255.
        std: One positive value a channel; mean 0 and std 1 only divide by 255.

    Returns:
        float32, shape and memory format of ``images``.

    Raises:
        ValueError: If the images are not uint8, or there is not one value a channel.
    """
    _check_uint8("normalize", images)
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=images.device) for v in (mean, std))
    if mean.shape != std.shape or mean.shape != images.shape[1:2]:
        given = f"mean of shape {tuple(mean.shape)} and std of shape {tuple(std.shape)}"
        raise ValueError(f"normalize: {given} for {images.shape[1]} channel(s); give one value a channel.")
    # One value a pixel, since broadcasting keeps the operation from using vector instructions.
    pixels = images.shape[1:]
    scale, shift = (v[:, None, None].expand(pixels).contiguous() for v in (1 / (255 * std), -mean / std))
    x = images.to(torch.float32)
    return torch.addcmul(shift, x, scale, out=x)


def reflect_crop_flip(
    images: Tensor, *, padding: int = 4, flip: bool = True, generator: torch.Generator
) -> Tensor:
    """Pad by reflection, cut an image of the old size out at a random place, mirror it with probability 1/2.

    One place and one coin an image. The border's own pixels are not repeated (numpy's ``reflect``).

    Args:
        images: Any type, shape ``(n, channels, height, width)``.
        padding: Pixels on each side, less than height and width; 0 only mirrors.
        flip: Whether to mirror at all.
        generator: Decides places and coins; on another device than the images, they are drawn there and
            copied, so that a CPU generator gives the same crops everywhere.

    Returns:
        A new tensor, type and shape of ``images``; image i stays at position i.

    Raises:
        ValueError: If ``images`` has not four dimensions, or ``padding`` is negative or not below the sides.

    Source: Cho and Lee (2017), the TensorFlow release's augmentation of CIFAR.
    """
    if images.dim() != 4:
        given = f"images of shape {tuple(images.shape)}"
        raise ValueError(f"reflect_crop_flip: {given}; give (n, channels, height, width).")
    n, channels, height, width = images.shape
    if not 0 <= padding < min(height, width):
        given = f"padding={padding} for images of {height}x{width}"
        raise ValueError(f"reflect_crop_flip: {given}; give 0 to {min(height, width) - 1}.")
    drawn = torch.randint(2 * padding + 1, (2, n), generator=generator, device=generator.device)
    coins = torch.randint(2, (n,), generator=generator, device=generator.device, dtype=torch.bool)
    (top, left), mirrored = (drawn - padding).to(images.device), (coins & flip).to(images.device)
    # Where each pixel of the result comes from: its row and its column, then its place in the flat image.
    rows = _reflect(torch.arange(height, device=images.device) + top[:, None], height)  # (n, height)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(0), columns)
    columns = _reflect(columns + left[:, None], width)  # (n, width)
    source = ((width * rows)[:, :, None] + columns[:, None, :]).view(n, 1, height * width)
    flat = images.reshape(n, channels, height * width)
    return flat.gather(2, source.expand(flat.shape)).view(images.shape)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size - 1 mirrored at the two ends."""
    return (size - 1) - ((size - 1) - position.abs()).abs()


def _check_uint8(caller: str, images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        given = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"{caller}: images are {given}; give uint8 of shape (n, channels, height, width).")
