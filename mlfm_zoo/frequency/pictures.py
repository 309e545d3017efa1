"""Pictures of an analysis: curves, classes, samples and the plane of frequencies."""

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

import torch
from PIL import Image
from timm.data import create_transform

from .._extras import require_matplotlib
from .._files import written_whole
from ..data.folders import image_mode
from .analysis import Probe, judge, write_table
from .filters import FrequencyFilter
from .levels import ClassCurve, Overall

__all__ = ['draw_fourier', 'draw_levels', 'draw_samples']

MAX_HEAT_CLASSES = 60  # whose names are written beside a heat map
SHOWN_RADII = 6  # filtered images in the picture of a sample
LINES = {'lowpass': '-', 'highpass': '--'}
SCALE_COLUMNS = ('file', 'model', 'scale', 'radius', 'probability', 'rank', 'predicted')


def draw_levels(folder: Union[str, Path], rows: Sequence[Overall], curves: Sequence[ClassCurve]) -> List[Path]:
    """Draw accuracy against radius, and what each class needs.

    Args:
        folder: Folder of the pictures: overall.png, bands.png, and classes-MODEL.png for each model.
        rows: Of the overall level.
        curves: Of the class level.

    Returns:
        The files.
    """
    plt = require_matplotlib()
    models = list(dict.fromkeys(row.model for row in rows))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for i, model in enumerate(models):
        for kind, line in LINES.items():
            of_kind = [row for row in rows if (row.model, row.filter) == (model, kind)]
            if of_kind:
                of_kind.sort(key=lambda row: row.radius)
                radii = [row.radius for row in of_kind]
                axes.plot(radii, [row.top1 for row in of_kind], f'C{i}{line}o', markersize=3, label=f'{model}, {kind}')
                axes.fill_between(
                    radii, [row.low for row in of_kind], [row.high for row in of_kind], color=f'C{i}', alpha=0.12)
    axes.set(xlabel='radius, cycles per image', ylabel='top-1 accuracy, %', ylim=(0, 102),
             title=f'{rows[0].n} filtered images; shaded: 95 % intervals')
    axes.legend(fontsize='small')
    files = [_save(figure, Path(folder) / 'overall.png')]

    low = [curve for curve in curves if curve.filter == 'lowpass']
    if any(curve.band for curve in low):
        figure, axes = plt.subplots(figsize=(6, 4.5), layout='constrained')
        for i, model in enumerate(models):
            of_model = [curve for curve in low if curve.model == model and curve.band]
            for curve in of_model:
                assert curve.band is not None
                axes.plot(curve.band, [curve.top1[-1]] * 2, color=f'C{i}', alpha=0.3)
            axes.plot([c.band[1] for c in of_model if c.band], [c.top1[-1] for c in of_model], f'C{i}o', label=model)
        axes.set(xlabel='sensitive band, cycles per image (dot: its high end)', ylabel='accuracy on the class, %',
                 ylim=(0, 103), title='A line a class: where it gains its accuracy')
        axes.legend(fontsize='small')
        files.append(_save(figure, Path(folder) / 'bands.png'))
    for model in models:
        of_model = sorted((c for c in low if c.model == model), key=lambda c: c.band or (float('inf'),) * 2)
        if of_model:
            height = min(12.0, 1.5 + 0.22 * len(of_model))
            figure, axes = plt.subplots(figsize=(7, height), layout='constrained')
            shown = axes.imshow([c.top1 for c in of_model], aspect='auto', vmin=0, vmax=100, interpolation='nearest')
            radii = of_model[0].radii
            axes.set_xticks(range(len(radii)), [f'{r:g}' for r in radii], fontsize='small')
            if len(of_model) <= MAX_HEAT_CLASSES:
                axes.set_yticks(range(len(of_model)), [c.name for c in of_model], fontsize='small')
            axes.set(xlabel='low-pass radius, cycles per image', title=f'{model}: classes by sensitive band')
            figure.colorbar(shown, label='top-1 accuracy, %')
            files.append(_save(figure, Path(folder) / f'classes-{_in_name(model)}.png'))
    return files


def draw_samples(
        probe: Probe,
        folder: Union[str, Path],
        files: Sequence[str],
        scales: Sequence[float] = (1, 1.5, 2),
) -> List[Path]:
    """Draw what models make of single images.

    A picture shows the image at several radii, the probability of the true class against the radius and where the
    answer changes, and, in a plot of its own, the curves of the same image enlarged and cropped to its middle. The
    points of the latter are written to `scales.csv`.

    Args:
        probe: Models and images of the analysis.
        folder: Folder of the analysis, for the pictures sample-FILE.png too.
        files: Names of images, relative to the folder of images.
        scales: How much images are enlarged, 1 or more.

    Returns:
        The pictures.

    Raises:
        ValueError: An image is not among those that were analysed, or a scale is below 1.
    """
    plt = require_matplotlib()
    if any(not 1 <= scale < float('inf') for scale in scales):
        raise ValueError(f'The scales are {list(scales)}, expected numbers of 1 or more.')
    answers = _answers_on(Path(folder) / 'samples.csv', files)
    numbers = {file: i for i, file in enumerate(probe.files)}
    pictures, points = [], []
    for file in files:
        if not answers[file]:
            raise ValueError(
                f'{file} is none of the images that were analysed: give names as they stand in samples.csv.')
        with open(probe.reader.filename(numbers[file], absolute=True), 'rb') as f, Image.open(f) as opened:
            image = opened.convert(image_mode(probe.configs[0]))
        name = next(row['class'] for row in answers[file])
        label = probe.class_names.index(name)
        radii = sorted({float(row['radius']) for row in answers[file]})
        scaled = _scaled_curves(probe, image, label, radii, scales)
        points += [[file, *row] for row in scaled]

        figure = plt.figure(figsize=(10, 6), layout='constrained')
        grid = figure.add_gridspec(2, 2 * SHOWN_RADII, height_ratios=(1, 2))
        shown = [radii[round(i * (len(radii) - 1) / (SHOWN_RADII - 1))] for i in range(SHOWN_RADII)]
        tensor = create_transform(**probe.configs[0])(image)
        for i, radius in enumerate(shown):
            axes = figure.add_subplot(grid[0, 2 * i:2 * i + 2])
            axes.imshow(_pixels(FrequencyFilter('lowpass', radius)(tensor), probe.configs[0]), cmap='gray')
            axes.set_title(f'low-pass {radius:g}', fontsize='small')
            axes.axis('off')
        axes = figure.add_subplot(grid[1, :SHOWN_RADII])
        for i, model in enumerate(probe.models):
            for kind, line in LINES.items():
                rows = sorted((r for r in answers[file] if (r['model'], r['filter']) == (model, kind)),
                              key=lambda r: float(r['radius']))
                if not rows:
                    continue
                x, y = [float(r['radius']) for r in rows], [float(r['probability']) for r in rows]
                axes.plot(x, y, f'C{i}{line}', label=f'{model}, {kind}')
                if kind == 'lowpass':
                    for j, (before, after) in enumerate(zip([None, *rows], rows)):
                        if before is None or before['predicted'] != after['predicted']:
                            axes.plot(x[j], y[j], f'C{i}o', markersize=4)
                            axes.annotate(after['predicted'][:14], (x[j], y[j]), fontsize='x-small',
                                          xytext=(3, 4 + 9 * i), textcoords='offset points', color=f'C{i}')
        axes.set(xlabel='radius, cycles per image', ylabel=f'probability of {name}', ylim=(-0.03, 1.12),
                 title='dots: where the low-pass answer changes')
        axes.legend(fontsize='x-small', loc='center right')
        axes = figure.add_subplot(grid[1, SHOWN_RADII:])
        for i, model in enumerate(probe.models):
            for scale, style in zip(scales, ('-', '--', ':', '-.') * len(scales)):
                rows_at = [row for row in scaled if row[0] == model and row[1] == f'{scale:g}']
                axes.plot([float(r[2]) for r in rows_at], [float(r[3]) for r in rows_at], f'C{i}{style}',
                          label=f'{model}, x{scale:g}')
        axes.set(xlabel='low-pass radius, cycles per image', ylim=(-0.03, 1.12), title='enlarged and cropped')
        axes.legend(fontsize='x-small', loc='center right')
        figure.suptitle(file)
        pictures.append(_save(figure, Path(folder) / f'sample-{_in_name(str(Path(file).with_suffix("")))}.png'))
    write_table(Path(folder) / 'scales.csv', SCALE_COLUMNS, points)
    return pictures


def draw_fourier(
        folder: Union[str, Path],
        errors: Mapping[str, Mapping[Tuple[int, int], float]],
        norm: float,
) -> Path:
    """Draw the error rate of each model over the plane of frequencies, DC in the middle.

    Args:
        folder: Folder of the picture, fourier.png.
        errors: What `fourier_errors` returns.
        norm: Norm of the basis vectors, for the title.

    Returns:
        The file.
    """
    plt = require_matplotlib()
    figure, grid = plt.subplots(
        1, len(errors), figsize=(1 + 4 * len(errors), 4), layout='constrained', squeeze=False, sharey=True)
    shown: Any = None
    for axes, (model, plane) in zip(grid[0], errors.items()):
        extent = max(fy for fy, _ in plane)
        side = range(-extent, extent + 1)
        shown = axes.imshow(
            [[100 * plane[fy, fx] for fx in side] for fy in side], vmin=0, vmax=100, origin='lower',
            extent=(-extent - 0.5, extent + 0.5) * 2)
        axes.set_title(model, fontsize='small')
        axes.set_xlabel('cycles over the width')
    grid[0][0].set_ylabel('cycles over the height')
    figure.colorbar(shown, ax=list(grid[0]), label='errors, %')
    figure.suptitle(f'One Fourier basis vector of norm {norm:g} added')
    return _save(figure, Path(folder) / 'fourier.png')


@torch.inference_mode()
def _scaled_curves(
        probe: Probe,
        image: Image.Image,
        label: int,
        radii: Sequence[float],
        scales: Sequence[float],
) -> List[List[Any]]:
    rows = []
    labels = torch.tensor([label], device=probe.device)
    for config, names in zip(probe.configs, probe.groups):
        for scale in scales:
            # enlarged before the crop: what is seen is smaller, and finer where the image has more pixels
            transform = create_transform(**{**config, 'crop_pct': config['crop_pct'] / scale})
            tensor = transform(image)[None].to(probe.device)
            for radius in radii:
                filtered = FrequencyFilter('lowpass', radius)(tensor)
                for name in names:
                    [[probability, rank, predicted]] = judge(probe.models[name](filtered), labels)
                    rows.append([name, f'{scale:g}', f'{radius:g}', f'{probability:.6g}', rank,
                                 probe.class_names[predicted]])
    return rows


def _answers_on(samples: Path, files: Sequence[str]) -> Dict[str, List[Dict[str, str]]]:
    """Rows of samples.csv on some images."""
    answers: Dict[str, List[Dict[str, str]]] = defaultdict(list)
    wanted = set(files)
    with open(samples, newline='', encoding='utf-8') as f:
        for row in csv.DictReader(f):
            if row['file'] in wanted:
                answers[row['file']].append(row)
    return answers


def _pixels(tensor: torch.Tensor, config: Mapping[str, Any]) -> Any:
    """A normalised image (C, H, W) as pixels (H, W, C) or (H, W) from 0 to 1."""
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    pixels = (tensor * std + mean).clamp(0, 1)
    return pixels[0].numpy() if len(pixels) in (1, 2) else pixels[:3].permute(1, 2, 0).numpy()


def _in_name(text: str) -> str:
    return re.sub(r'[^\w.=-]+', '_', text)


def _save(figure: Any, file: Path) -> Path:
    with written_whole(file) as unfinished:
        figure.savefig(unfinished, dpi=100, format='png')
    require_matplotlib().close(figure)
    return file
