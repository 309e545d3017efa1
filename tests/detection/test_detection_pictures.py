"""Pictures of detections."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.detectors import samples
from mlfm_zoo.detection import draw_predictions


def test_draw_predictions(tmp_path):
    images, targets = samples()
    prediction = dict(targets[0], scores=torch.tensor([0.9, 0.1]), masks=targets[0]['masks'][:, None].float())
    file = draw_predictions(images[0], prediction, tmp_path / 'new' / 'a.png', {1: 'cat'})
    drawn = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    changed = (drawn - images[0]).abs().amax(0) > 0.1
    assert drawn.shape == images[0].shape and changed[12:38, 7:48].float().mean() > 0.5 and not changed[:, 60:].any()
    gray = draw_predictions(images[0][:1], targets[0], tmp_path / 'b.png')  # a target, and names of numbers
    assert np.array(Image.open(gray)).shape == (67, 91, 3)
    empty = draw_predictions(images[1], targets[1], tmp_path / 'c.png')
    np.testing.assert_allclose(np.array(Image.open(empty)), (images[1] * 255).round().permute(1, 2, 0), atol=1)
    assert sorted(f.name for f in tmp_path.rglob('*') if f.is_file()) == ['a.png', 'b.png', 'c.png']
    with_alpha = draw_predictions(torch.cat((images[0], images[0][:1])), prediction, tmp_path / 'd.png', {1: 'cat'})
    assert with_alpha.read_bytes() == file.read_bytes()
    for shape in ((2, 8, 8), (5, 8, 8), (8, 8)):
        with pytest.raises(ValueError, match=re.escape(f'The image is of shape {shape}, expected (3, H, W)')):
            draw_predictions(torch.zeros(shape), prediction, tmp_path / 'e.png')
