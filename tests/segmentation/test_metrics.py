"""Measures against torchmetrics and scikit-learn, and the boundary F-score against its definition, pixel by pixel."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from mlfm_zoo.segmentation.metrics import SegmentationMeter, as_row, boundary_scores


def blobs(seed, count=4, size=(21, 30), classes=4):
    """Labels of some rectangles, with void among them."""
    random = torch.Generator().manual_seed(seed)

    def draw(high):
        return int(torch.randint(high, (), generator=random))

    labels = torch.zeros(count, *size, dtype=torch.long)
    for image in labels:
        for _ in range(6):
            top, left, label = draw(size[0] - 4), draw(size[1] - 4), draw(classes)
            image[top:top + 3 + draw(7), left:left + 3 + draw(9)] = label
    return labels


def test_against_torchmetrics_and_scikit_learn():
    predicted, truth = blobs(0), blobs(1)
    truth[:, :3, :5] = 255
    meter = SegmentationMeter(5, boundaries=False)  # of which the last is never there
    for i in range(4):
        meter.update(predicted[i:i + 1], truth[i:i + 1])
    scores = meter.compute()
    valid = truth != 255
    assert scores.confusion == confusion_matrix(truth[valid], predicted[valid], labels=range(5)).tolist()
    iou = MulticlassJaccardIndex(5, average=None, ignore_index=255)(predicted, truth)
    torch.testing.assert_close(torch.tensor(scores.class_iou[:4]), iou[:4])
    assert math.isnan(scores.class_iou[4]) and scores.miou == pytest.approx(iou[:4].mean().item())
    accuracy = MulticlassAccuracy(5, average='micro', ignore_index=255)(predicted, truth)
    assert scores.pixel_accuracy == pytest.approx(accuracy.item())
    row = as_row(scores, 'abcde')
    assert row['miou'] == pytest.approx(100 * scores.miou, abs=1e-3) and 'boundary_f' not in row


def literal_boundary(labels, label):
    """Pixels of a class with a neighbor that is inside, not void and of another class."""
    height, width = labels.shape
    found = []
    for y in range(height):
        for x in range(width):
            if labels[y, x] == label and any(
                    0 <= v < height and 0 <= u < width and labels[v, u] not in (label, 255)
                    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))):
                found.append((y, x))
    return found


def literal_score(predicted, truth, label, tolerance):
    predicted = predicted.clone()
    predicted[truth == 255] = 255
    ours, theirs = literal_boundary(predicted, label), literal_boundary(truth, label)
    if not ours and not theirs:
        return math.nan
    if not ours or not theirs:
        return 0.0
    precision = sum(min(math.dist(p, q) for q in theirs) <= tolerance for p in ours) / len(ours)
    recall = sum(min(math.dist(p, q) for q in ours) <= tolerance for p in theirs) / len(theirs)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize('tolerance', [None, 0, 1, 2.3])
def test_boundary_score_is_its_definition(tolerance):
    predicted, truth = blobs(2, 2), blobs(3, 2)
    predicted[0] = truth[0].roll(1, 1)
    truth[:, 4:9, 3:9] = 255
    pixels = 0.0075 * math.hypot(21, 30) if tolerance is None else tolerance
    meter = SegmentationMeter(5)
    meter.update(predicted, truth)
    expected = [[literal_score(p, t, label, pixels) for label in range(5)] for p, t in zip(predicted, truth)]
    for p, t, scores in zip(predicted, truth, expected):
        torch.testing.assert_close(
            boundary_scores(p, t, 5, tolerance), torch.tensor(scores, dtype=torch.float64), equal_nan=True)
    if tolerance is None:
        means = torch.tensor(expected, dtype=torch.float64).nanmean(0)
        scores = meter.compute()
        torch.testing.assert_close(torch.tensor(scores.class_boundary_f, dtype=torch.float64), means, equal_nan=True)
        assert scores.boundary_f == pytest.approx(means.nanmean().item())
