"""Accuracy of all images and of each class, counted again from the samples."""

import shutil
from collections import Counter

import numpy as np
import pytest
import timm

from helpers.tables import read_table
from mlfm_zoo import frequency
from mlfm_zoo.workflow.evaluate import evaluate

MODEL = 'test_mlfm_resnet'


def test_overall(analysed, data, models):
    """Counts of samples.csv; the full radius is the plain accuracy, and the empty high-pass DC's complement."""
    _, folder = analysed
    rows = frequency.overall_level(folder)
    written = read_table(folder / 'overall.csv')
    assert list(written[0]) == ['model', 'filter', 'radius', 'top1', 'top5', 'n', 'low', 'high']
    samples = read_table(folder / 'samples.csv')
    for row, line in zip(rows, written, strict=True):
        ranks = [int(s['rank']) for s in samples
                 if (s['model'], s['filter'], float(s['radius'])) == (row.model, row.filter, row.radius)]
        assert row.n == len(ranks) == 60
        assert row.top1 == pytest.approx(100 * ranks.count(1) / 60) == pytest.approx(float(line['top1']), abs=1e-4)
        assert row.top5 == pytest.approx(100 * sum(rank <= 5 for rank in ranks) / 60)
        assert row.low <= row.top1 <= row.high
        assert (row.low, row.high) == pytest.approx(wilson(ranks.count(1), 60))
    for name, model in models.items():
        plain = evaluate(model, data, num_workers=0)
        [full] = [r for r in rows if (r.model, r.filter, r.radius) == (name, 'lowpass', 46)]
        assert (full.top1, full.top5) == (100 * plain.top1 / 60, 100 * plain.top5 / 60)


def wilson(right, n):
    """The roots of (share - p)^2 = z^2 p (1 - p) / n, in percent."""
    z2 = 1.959964 ** 2
    roots = np.roots([1 + z2 / n, -(2 * right / n + z2 / n), (right / n) ** 2])
    return tuple(100 * np.sort(np.clip(roots.real, 0, 1)))


def test_classes(analysed):
    _, folder = analysed
    curves = frequency.class_level(folder)
    samples = read_table(folder / 'samples.csv')
    assert len(curves) == 2 * 2 * 10
    for curve in curves:
        rows = [s for s in samples if (s['model'], s['filter'], s['class']) == (curve.model, curve.filter, curve.name)]
        right = Counter(float(s['radius']) for s in rows if s['rank'] == '1')
        assert curve.n * len(curve.radii) == len(rows)
        assert curve.top1 == pytest.approx([100 * right[radius] / curve.n for radius in curve.radii])
        assert (curve.band is None) == (curve.filter == 'highpass' or curve.top1[-1] == 0)
    assert len(read_table(folder / 'classes.csv')) == sum(len(curve.radii) for curve in curves)


@pytest.mark.parametrize('top1, band', [
    ([0, 0, 50, 100, 100], (12, 28)),  # 10 % at a fifth of the way from 10 to 20, 90 % at 8 tenths from 20 to 30
    ([80, 90, 90, 90, 90], (0, 1)), ([0, 0, 0, 0, 40], (31, 39)), ([0, 100, 0, 100, 100], (1, 9)),
    ([9, 0, 0, 0, 0], None)])
def test_sensitive_band(top1, band):
    found = frequency.sensitive_band([0, 10, 20, 30, 40], top1)
    assert found == (None if band is None else pytest.approx(band))


def test_one_class_of_many(data, tmp_path):
    """Names of classes given, a folder may hold one of them alone: its curve is the curve."""
    shutil.copytree(data / '3', tmp_path / 'one' / '3')
    model = timm.create_model(MODEL, pretrained=True)
    probe = frequency.Probe({MODEL: model}, tmp_path / 'one', class_names=list('0123456789'), num_workers=0)
    frequency.analyse(probe, tmp_path / 'out', radii=[2], filters=['lowpass'])
    rows, curves = frequency.overall_level(tmp_path / 'out'), frequency.class_level(tmp_path / 'out')
    assert [r.top1 for r in rows] == curves[0].top1 and len(curves) == 1 and curves[0].name == '3'
    assert frequency.draw_levels(tmp_path / 'out', rows, curves)
