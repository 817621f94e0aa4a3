"""Normalization, crop and flip of a whole batch against one image at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from riembn.data import channel_stats, normalize, reflect_crop_flip


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def every_outcome(image: np.ndarray, padding: int) -> np.ndarray:
    """All (2p+1)² crops of one image (C, H, W) and their mirror images, by numpy's own padding."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    crops = np.stack([padded[:, top : top + height, left : left + width] for top, left in places])
    return np.concatenate([crops, crops[..., ::-1]])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 5),
    channels=st.integers(1, 4),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_crop_and_flip_equal_one_image_at_a_time(
    n: int, channels: int, height: int, width: int, data: st.DataObject, seed: int
) -> None:
    padding = data.draw(st.integers(0, min(height, width) - 1))
    images = random_images(n, channels, height, width, seed=seed)
    result = reflect_crop_flip(images, padding=padding, generator=generator(seed))
    draws = generator(seed)
    tops, lefts = torch.randint(2 * padding + 1, (2, n), generator=draws).tolist()
    flips = torch.randint(2, (n,), generator=draws).tolist()
    assert result.shape == images.shape and result.dtype == torch.uint8
    for i in range(n):
        place = tops[i] * (2 * padding + 1) + lefts[i]
        outcomes = every_outcome(images[i].numpy(), padding)
        expected = outcomes[place + flips[i] * len(outcomes) // 2]
        np.testing.assert_array_equal(result[i].numpy(), expected)


def test_every_crop_and_flip_is_equally_likely_and_stays_with_its_image() -> None:
    n, padding = 6000, 2
    images = random_images(n, 1, 6, 6, seed=1)
    result = reflect_crop_flip(images, padding=padding, generator=generator(2)).numpy()
    counts = np.zeros(2 * (2 * padding + 1) ** 2)
    for image, got in zip(images.numpy(), result, strict=True):
        matches = (every_outcome(image, padding) == got).all(axis=(1, 2, 3))
        assert matches.sum() == 1  # random pixels: an outcome of this image and no other
        counts += matches
    expected = n / len(counts)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 49 degrees of freedom: mean 49, standard deviation 9.9.
    assert chi_square < 49 + 5 * 9.9


def test_generator_decides_and_moves_on() -> None:
    images = random_images(32, 3, 8, 8)
    draws = generator(5)
    first, second = (reflect_crop_flip(images, generator=draws) for _ in range(2))
    assert torch.equal(first, reflect_crop_flip(images, generator=generator(5)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, reflect_crop_flip(images, generator=generator(6)))


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    reflect_crop_flip(random_images(8, 3, 8, 8), generator=generator(0))
    assert torch.equal(before, torch.get_rng_state())


def test_input_is_left_alone_and_layout_does_not_matter() -> None:
    images = random_images(16, 3, 8, 8)
    copy = images.clone()
    result = reflect_crop_flip(images, generator=generator(1))
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(reflect_crop_flip(strided, generator=generator(1)), result)
    assert torch.equal(images, copy)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_generator_gives_the_same_crops_on_the_gpu() -> None:
    images = random_images(64, 3, 32, 32)
    on_gpu = reflect_crop_flip(images.cuda(), generator=generator(3))
    assert torch.equal(on_gpu.cpu(), reflect_crop_flip(images, generator=generator(3)))
    own = torch.Generator("cuda").manual_seed(0)
    assert reflect_crop_flip(images.cuda(), generator=own).shape == images.shape


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), channels=st.integers(1, 4), size=st.integers(2, 9), seed=st.integers(0, 2**31))
def test_channel_stats_equal_numpys(n: int, channels: int, size: int, seed: int) -> None:
    images = random_images(n, channels, size, size, seed=seed)
    images[:, 0] //= 10  # a dark channel
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255  # none is constant
    mean, std = channel_stats(images)
    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean.numpy(), pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), pixels.std(axis=(0, 2, 3)), rtol=1e-6)
    assert mean.dtype == std.dtype == torch.float32


def test_normalize_equals_the_formula_pixel_by_pixel() -> None:
    images = random_images(4, 3, 5, 7)
    mean, std = [0.4, 0.5, 0.1], [0.2, 0.3, 1.5]
    expected = (images.numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    tensors = normalize(images, torch.tensor(mean), torch.tensor(std))
    assert torch.equal(tensors, result)


def test_normalize_with_own_stats_gives_zero_mean_and_unit_deviation() -> None:
    images = random_images(64, 3, 16, 16) // torch.tensor([1, 2, 5], dtype=torch.uint8)[:, None, None]
    result = normalize(images, *channel_stats(images)).double()
    assert result.mean((0, 2, 3)).abs().max() < 1e-6
    assert (result.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6


def test_normalize_keeps_channels_last() -> None:
    images = random_images(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    result = normalize(images, [0.0] * 3, [1.0] * 3)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: reflect_crop_flip(x, padding=8, generator=generator(0)), "padding=8 .* 8x9; give 0 to 7"),
        (lambda x: reflect_crop_flip(x, padding=-1, generator=generator(0)), "padding=-1 .* give 0 to 7"),
        (lambda x: reflect_crop_flip(x[0], generator=generator(0)), r"shape \(3, 8, 9\); give \(n, channels"),
        (lambda x: normalize(x.float(), [0.0] * 3, [1.0] * 3), "normalize: images are torch.float32"),
        (lambda x: normalize(x, [0.0], [1.0]), "normalize: mean of shape .1,. .* for 3 channel"),
        (lambda x: normalize(x, [0.0] * 3, [1.0]), "give one value a channel"),
        (lambda x: channel_stats(x[0]), r"channel_stats: images are torch.uint8 of shape \(3, 8, 9\)"),
        (lambda x: channel_stats(x[:0]), "have no pixels"),
        (lambda x: channel_stats(x.index_fill(1, torch.tensor([1]), 7)), r"\[1\] are constant; .*pixels='unit'"),
    ],
)
def test_bad_input_is_refused_in_one_line(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call(random_images(2, 3, 8, 9))  # type: ignore[operator]
    assert "\n" not in str(caught.value)
