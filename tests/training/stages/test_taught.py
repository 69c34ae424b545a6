import pytest
import torch

from offramp.training.stages.taught import answers_loss


def test_what_a_pasted_image_was_does_not_count() -> None:
    torch.manual_seed(0)
    logits, taught = torch.randn(6, 4), torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    others = torch.tensor([3, 3, 2, 3, 0, 1])
    found, same = (answers_loss(logits, names, taught, 0.25, 2.0, 2) for names in (labels, others))
    assert torch.equal(found, same)
    alone = answers_loss(logits[:2], labels[:2], taught[:2], 1.0, 2.0)
    rest = answers_loss(logits[2:], labels[2:], taught[2:], 0.25, 2.0)
    assert float(found) == pytest.approx(float(2 * alone + 4 * rest) / 6, abs=1e-6)
