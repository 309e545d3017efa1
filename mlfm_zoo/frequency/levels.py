"""Accuracy by frequency, overall and per class, from predictions on single images."""

from collections import defaultdict
from itertools import groupby
from pathlib import Path
from statistics import NormalDist
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from .tables import read_table, write_table

__all__ = ['ClassCurve', 'Overall', 'class_level', 'overall_level', 'sensitive_band']

Z95 = NormalDist().inv_cdf(0.975)  # a normal variable lies within this many deviations in 95 of 100 cases


class Overall(NamedTuple):
    """Accuracy of a model on all images, with one filter.

    Attributes:
        model: Name of the model.
        filter: 'lowpass' or 'highpass'.
        radius: Radius in cycles per image.
        top1: Images whose class is the first answer, in percent.
        top5: Images whose class is among the first five answers, in percent.
        n: Images.
        low: Low end of the 95 % interval of top1 (Wilson's), in percent.
        high: High end of it.
    """
    model: str
    filter: str
    radius: float
    top1: float
    top5: float
    n: int
    low: float
    high: float


class ClassCurve(NamedTuple):
    """Accuracy of a model on one class, by radius.

    Attributes:
        model: Name of the model.
        filter: 'lowpass' or 'highpass'.
        name: Name of the class.
        n: Images.
        radii: Radii in cycles per image, ascending.
        top1: Images whose class is the first answer at each radius, in percent.
        band: Sensitive band of the class, see `sensitive_band`; None for high-pass curves too.
    """
    model: str
    filter: str
    name: str
    n: int
    radii: List[float]
    top1: List[float]
    band: Optional[Tuple[float, float]]


def overall_level(folder: Union[str, Path]) -> List[Overall]:
    """Write `overall.csv` from `samples.csv`: a row for each model, filter and radius.

    Args:
        folder: Folder of the analysis.

    Returns:
        Its rows.

    Examples:
        >>> from mlfm_zoo.frequency import Probe, analyse
        >>> model = timm.create_model('test_mlfm_resnet', pretrained=True)
        >>> analyse(Probe({'memory': model}, 'digits/val', num_workers=0), 'levels', radii=[4])
        >>> [(row.filter, row.radius) for row in overall_level('levels')][:3]
        [('lowpass', 0.0), ('lowpass', 4.0), ('lowpass', 46.0)]
    """
    totals: Dict[Tuple[str, str, float], np.ndarray] = defaultdict(lambda: np.zeros(3, int))
    for (model, kind, _, radius), counts in _count(folder).items():
        totals[model, kind, radius] += counts
    rows = []
    for (model, kind, radius), counts in totals.items():
        n, top1, top5 = counts.tolist()
        low, high = _wilson(top1, n)
        rows.append(Overall(model, kind, radius, 100 * top1 / n, 100 * top5 / n, n, 100 * low, 100 * high))
    write_table(Path(folder) / 'overall.csv', Overall._fields, [
        [r.model, r.filter, f'{r.radius:g}', f'{r.top1:.4f}', f'{r.top5:.4f}', r.n, f'{r.low:.4f}', f'{r.high:.4f}']
        for r in rows])
    return rows


def class_level(folder: Union[str, Path]) -> List[ClassCurve]:
    """Write `classes.csv` from `samples.csv`, by model, filter, class and radius.

    Args:
        folder: Folder of the analysis.

    Returns:
        The curves.

    Examples:
        >>> from mlfm_zoo.frequency import Probe, analyse
        >>> model = timm.create_model('test_mlfm_resnet', pretrained=True)
        >>> analyse(Probe({'memory': model}, 'digits/val', num_workers=0), 'classes', radii=[4])
        >>> class_level('classes')[0].radii
        [0.0, 4.0, 46.0]
    """
    counts, curves = _count(folder), []
    for (model, kind, name), points in groupby(sorted(counts), lambda point: point[:3]):
        radii = [radius for *_, radius in points]
        n, right, _ = np.stack([counts[model, kind, name, radius] for radius in radii], axis=1)
        top1 = (100 * right / n).tolist()
        band = sensitive_band(radii, top1) if kind == 'lowpass' else None
        curves.append(ClassCurve(model, kind, name, int(n[0]), radii, top1, band))
    write_table(
        Path(folder) / 'classes.csv',
        ('model', 'filter', 'class', 'radius', 'top1', 'n', 'band_low', 'band_high'),
        [[c.model, c.filter, c.name, f'{radius:g}', f'{top1:.4f}', c.n,
          *([f'{end:.4f}' for end in c.band] if c.band else ('', ''))]
         for c in curves for radius, top1 in zip(c.radii, c.top1)])
    return curves


def sensitive_band(radii: Sequence[float], top1: Sequence[float]) -> Optional[Tuple[float, float]]:
    """Find the radii between which a class gains its accuracy.

    The paper has no formula; this one is the project's. The low-pass curve is interpolated linearly. The band begins
    where the curve first reaches 10 % of the accuracy at the full radius, and ends where it first reaches 90 %.

    Args:
        radii: Radii in cycles per image, ascending, the last the full one.
        top1: Low-pass accuracy at each.

    Returns:
        The low and the high end in cycles per image; None if the accuracy at the full radius is 0.

    Examples:
        >>> sensitive_band(radii=[0, 10, 20, 30], top1=[0, 40, 80, 80])
        (2.0, 18.0)
    """
    if not top1[-1]:
        return None
    return radius_at(radii, top1, 0.1 * top1[-1]), radius_at(radii, top1, 0.9 * top1[-1])


def radius_at(radii: Sequence[float], values: Sequence[float], goal: float) -> float:
    """The radius at which a curve first reaches a value, interpolated linearly."""
    i = next(i for i, value in enumerate(values) if value >= goal)
    part = slice(max(i - 1, 0), i + 1)
    return float(np.interp(goal, values[part], radii[part]))


def _count(folder: Union[str, Path]) -> Dict[Tuple[str, str, str, float], np.ndarray]:
    """Count images, top-1 and top-5 hits by (model, filter, class, radius)."""
    counts: Dict[Tuple[str, str, str, float], np.ndarray] = defaultdict(lambda: np.zeros(3, int))
    columns: Dict[str, Any] = {'model': str, 'filter': str, 'class': str, 'radius': float, 'rank': int}
    for row in read_table(Path(folder) / 'samples.csv', columns):
        rank = row['rank']
        counts[row['model'], row['filter'], row['class'], row['radius']] += (1, rank == 1, rank <= 5)
    return counts


def _wilson(right: int, n: int) -> Tuple[float, float]:
    """The 95 % interval of a share after Wilson."""
    share, z2 = right / n, Z95 * Z95
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))  # against rounding
