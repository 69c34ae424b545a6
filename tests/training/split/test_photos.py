"""Photos as the numbers that a model expects."""

import torch

from offramp.training.split.photos import Normalise, augmented


def test_pixels_are_normalised_channel_by_channel() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    found = Normalise((0.5, 0.2, 0.4), (0.5, 0.1, 0.3))(images)
    assert torch.allclose(found.flatten(), torch.tensor([-1.0, 0.0, 2.0]), atol=1e-5)


def test_the_seed_decides_how_photos_are_changed() -> None:
    x = torch.rand(8, 3, 16, 16)

    def changed(seed: int, *, flip: bool = True, mix: bool = True) -> torch.Tensor:
        return augmented(x, flip=flip, mix=mix, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(changed(1), changed(1)) and not torch.equal(changed(1), changed(2))
    assert changed(1).shape == x.shape and not torch.equal(changed(1, flip=False), changed(1))
