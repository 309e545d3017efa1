"""Loss against torch's, sliding windows against their definition."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlfm_zoo.segmentation import predict_labels, predict_probabilities, segmentation_loss


def test_loss_leaves_void_pixels_out():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6, requires_grad=True), torch.randint(4, (2, 5, 6))
    labels[0, :2] = 255
    torch.testing.assert_close(segmentation_loss(logits, labels), F.cross_entropy(logits, labels, ignore_index=255))
    segmentation_loss(logits, labels).backward()
    assert not logits.grad[0, :, :2].any() and logits.grad[0, :, 2:].all()
    other = torch.where(labels == 255, -1, labels)
    torch.testing.assert_close(
        segmentation_loss((logits, logits), other, 0.5, ignore_index=-1), 1.5 * segmentation_loss(logits, labels))
    assert segmentation_loss(logits, torch.full_like(labels, 255)) == 0
    binary = labels.clamp(max=1).masked_fill(labels == 255, 255)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][binary < 255], binary[binary < 255].float())
    torch.testing.assert_close(segmentation_loss(logits[:, :1], binary), expected)


def test_sliding_window():
    """A pointwise network predicts the same in windows; of any other, probabilities of windows are averaged."""
    torch.manual_seed(0)
    pointwise, image = nn.Conv2d(3, 4, 1).eval(), torch.randn(2, 3, 37, 53)
    whole = predict_probabilities(pointwise, image)
    for window, overlap in (((16, 20), 0.5), ((64, 20), 0.0), ((7, 64), 0.8), ((64, 64), 0.5)):
        torch.testing.assert_close(predict_probabilities(pointwise, image, window, overlap), whole)
    assert whole.sum(1).allclose(torch.ones(2, 37, 53))
    network = nn.Conv2d(3, 4, 5, padding=2).eval()
    total, count = torch.zeros(2, 4, 37, 53), torch.zeros(37, 53)
    with torch.no_grad():
        for top in (0, 7, 14, 21):
            for left in (0, 8, 16, 25, 33):
                total[..., top:top + 16, left:left + 20] += network(image[..., top:top + 16, left:left + 20]).softmax(1)
                count[top:top + 16, left:left + 20] += 1
    torch.testing.assert_close(predict_probabilities(network, image, (16, 20), 0.5), total / count)
    flipped = predict_probabilities(network, image, flip=True)
    mirrored = predict_probabilities(network, image.flip(3)).flip(3)
    torch.testing.assert_close(flipped, (predict_probabilities(network, image) + mirrored) / 2)
    for window, overlap in (((0, 4), 0.5), ((4, 4), 1.0)):
        with pytest.raises(ValueError, match='expected a height and a width above 0, and an overlap'):
            predict_probabilities(network, image, window, overlap)


def test_binary():
    network = nn.Conv2d(3, 1, 1).eval()
    image = torch.randn(1, 3, 5, 6)
    assert torch.equal(predict_labels(predict_probabilities(network, image)), (network(image)[:, 0] >= 0).long())
