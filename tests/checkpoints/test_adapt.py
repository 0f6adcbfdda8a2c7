"""An adapted patch embedding gives the same response as before."""

import pytest
import torch
import torch.nn.functional as F

from swinv2_mm.checkpoints.adapt import adapt_channels, adapt_patch


@pytest.fixture
def kernel():
    return torch.randn(8, 3, 4, 4)


def respond(kernel, patch):
    return (kernel * patch).sum((1, 2, 3))


def test_a_grey_image_gives_what_it_gave_as_rgb(kernel):
    """Prevents: a mean in the place of the sum, which makes features a third as large."""
    grey = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(respond(adapt_channels(kernel, 1), grey), respond(kernel, grey.expand(1, 3, 4, 4)))


@pytest.mark.parametrize('channels', [2, 4, 5, 6, 9])
def test_equal_channels_give_what_three_gave(kernel, channels):
    """For whole multiples of RGB exactly. Prevents: features that grow with the number of channels."""
    adapted = adapt_channels(kernel, channels)
    assert adapted.shape == (8, channels, 4, 4)
    for c in range(channels):
        torch.testing.assert_close(adapted[:, c], kernel[:, c % 3] * 3 / channels)
    if channels % 3 == 0:
        grey = torch.randn(1, 1, 4, 4)
        torch.testing.assert_close(
            respond(adapted, grey.expand(1, channels, 4, 4)), respond(kernel, grey.expand(1, 3, 4, 4))
        )


@pytest.mark.parametrize('side', [5, 6, 8, 14])
def test_an_enlarged_patch_gives_what_it_gave(kernel, side):
    """Prevents: a kernel that is resized like an image, whose response grows with its area."""
    patch = torch.randn(1, 3, 4, 4)
    larger = F.interpolate(patch, (side, side), mode='bicubic', antialias=True)
    torch.testing.assert_close(respond(adapt_patch(kernel, side), larger), respond(kernel, patch), rtol=1e-4, atol=1e-4)


def test_the_same_size_changes_nothing(kernel):
    torch.testing.assert_close(adapt_patch(kernel, 4), kernel)
    torch.testing.assert_close(adapt_channels(kernel, 3), kernel)


def test_a_smaller_patch_is_the_least_squares_solution(kernel):
    """Not every patch of 4 pixels can be told from 2; no other kernel comes closer over random patches.

    Prevents: the pseudo-inverse of the wrong side of the equation.
    """
    patches = torch.randn(4000, 3, 4, 4, dtype=torch.float64)
    smaller = F.interpolate(patches, (2, 2), mode='bicubic', antialias=True)
    kernel = kernel.double()
    target = patches.flatten(1) @ kernel.flatten(1).T
    unit = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    resize = F.interpolate(unit, (2, 2), mode='bicubic', antialias=True).view(16, 4)
    # <B x, new> = <x, B' new> for all x: the closest B' new to the old kernel is its projection.
    solved = torch.linalg.lstsq(resize, kernel.view(24, 16).T).solution.T.reshape(8, 3, 2, 2)
    torch.testing.assert_close(adapt_patch(kernel, 2), solved)
    error = (smaller.flatten(1) @ adapt_patch(kernel, 2).flatten(1).T - target).square().mean()
    cropped = kernel[..., 1:3, 1:3].flatten(1)
    assert error < (smaller.flatten(1) @ cropped.T - target).square().mean()
