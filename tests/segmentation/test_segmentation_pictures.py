"""Pictures of predictions."""

import numpy as np
import torch
from PIL import Image

from helpers.shape_folders import LABELS, shapes
from mlfm_zoo.segmentation.data import Labels, read_labels
from mlfm_zoo.segmentation.pictures import color_labels, draw_prediction


def test_pictures(tmp_path):
    labels = Labels.from_json(LABELS)
    image, mask = shapes(3)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    mask.save(tmp_path / 'mask.png')
    truth = read_labels(tmp_path / 'mask.png', labels)
    predicted = truth.clamp(max=2)
    predicted[30:34, 10:14] = 1 - predicted[30:34, 10:14].clamp(max=1)
    draw_prediction(tmp_path / 'p.png', pixels, predicted, labels, truth)
    strip = np.array(Image.open(tmp_path / 'p.png'))
    assert strip.shape == (48, 4 * 64 + 3 * 4, 3)
    photo, truth_, predicted_, error = (strip[:, i * 68:i * 68 + 64] for i in range(4))
    assert (photo == np.array(image)).all() and (truth_ == color_labels(truth, labels)).all()
    assert (predicted_ == color_labels(predicted, labels)).all()
    wrong = (error == (200, 30, 30)).all(-1)
    assert wrong[30:34, 10:14].all() and wrong.sum() == 16 and (error[:2] == 120).all()
    draw_prediction(tmp_path / 'gray.png', pixels[:1], predicted, labels)
    assert np.array(Image.open(tmp_path / 'gray.png')).shape == (48, 3 * 64 + 2 * 4, 3)
