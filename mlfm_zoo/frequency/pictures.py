"""Pictures of an analysis: curves, classes, samples and the plane of frequencies."""

import re
from collections import defaultdict
from itertools import cycle, groupby
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple, Union

import torch
from PIL import Image
from timm.data import create_transform

from .._extras import require_matplotlib
from .._files import written_whole
from .._terminal import printable
from ..data.filters import FrequencyFilter
from ..data.folders import image_mode
from ..data.images import open_image
from .analysis import Probe, judge
from .levels import ClassCurve, Overall
from .tables import read_record, read_table, write_table

__all__ = ['draw_fourier', 'draw_levels', 'draw_samples']

MAX_HEAT_CLASSES = 60  # whose names are written beside a heat map
LINES = {'lowpass': '-', 'highpass': '--'}
SCALE_COLUMNS = ('file', 'model', 'scale', 'radius', 'probability', 'rank', 'predicted')

# (probability of the true class, its rank, predicted class) at each radius, by model and scale
Curves = Dict[Tuple[str, float], List[List[Any]]]


def draw_levels(folder: Union[str, Path], rows: Sequence[Overall], curves: Sequence[ClassCurve]) -> List[Path]:
    """Draw accuracy against radius, and the sensitive bands of the classes.

    Args:
        folder: Folder of the pictures: overall.png, bands.png, and classes-MODEL.png for each model.
        rows: Rows of `overall_level`.
        curves: Curves of `class_level`.

    Returns:
        The files.

    Examples:
        >>> from mlfm_zoo.frequency.levels import Overall
        >>> rows = [Overall('memory', 'lowpass', radius, 60., 90., n=32, low=55., high=65.) for radius in (4, 46)]
        >>> [file.name for file in draw_levels('.', rows, curves=[])]
        ['overall.png']
    """
    plt = require_matplotlib()
    folder = Path(folder)
    models = list(dict.fromkeys(row.model for row in rows))
    labels = _labels(models)
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for i, model in enumerate(models):
        for kind, line in LINES.items():
            shown = [row for row in rows if (row.model, row.filter) == (model, kind)]
            if shown:
                radii = [row.radius for row in shown]
                axes.plot(radii, [row.top1 for row in shown], f'C{i}{line}o', markersize=3,
                          label=f'{labels[model]}, {kind}')
                axes.fill_between(
                    radii, [row.low for row in shown], [row.high for row in shown], color=f'C{i}', alpha=0.12)
    axes.set(xlabel='radius, cycles per image', ylabel='top-1 accuracy, %', ylim=(0, 102),
             title=f'{rows[0].n} filtered images; shaded: 95 % intervals')
    axes.legend(fontsize='small')
    files = [_save(figure, folder / 'overall.png')]

    low = [curve for curve in curves if curve.filter == 'lowpass']
    if any(curve.band for curve in low):
        figure, axes = plt.subplots(figsize=(6, 4.5), layout='constrained')
        for i, model in enumerate(models):
            bands = [(*curve.band, curve.top1[-1]) for curve in low if curve.model == model and curve.band]
            starts, ends, top1 = zip(*bands) if bands else ((), (), ())
            axes.hlines(top1, starts, ends, color=f'C{i}', alpha=0.3)
            axes.plot(ends, top1, f'C{i}o', label=labels[model])
        axes.set(xlabel='sensitive band, cycles per image (dot: its high end)', ylabel='accuracy on the class, %',
                 ylim=(0, 103), title='One line per class: where it gains its accuracy')
        axes.legend(fontsize='small')
        files.append(_save(figure, folder / 'bands.png'))

    for model, name in _file_names({model: model for model in models}).items():
        classes = sorted((c for c in low if c.model == model), key=lambda c: c.band or (float('inf'),) * 2)
        if classes:
            figure, axes = plt.subplots(figsize=(7, min(12.0, 1.5 + 0.22 * len(classes))), layout='constrained')
            image = axes.imshow([c.top1 for c in classes], aspect='auto', vmin=0, vmax=100, interpolation='nearest')
            axes.set_xticks(range(len(classes[0].radii)), [f'{r:g}' for r in classes[0].radii], fontsize='small')
            if len(classes) <= MAX_HEAT_CLASSES:
                axes.set_yticks(range(len(classes)), [_shown(c.name) for c in classes], fontsize='small')
            axes.set(xlabel='low-pass radius, cycles per image', title=f'{labels[model]}: classes by sensitive band')
            figure.colorbar(image, label='top-1 accuracy, %')
            files.append(_save(figure, folder / f'classes-{name}.png'))
    return files


def draw_samples(
        probe: Probe,
        folder: Union[str, Path],
        files: Sequence[str],
        scales: Sequence[float] = (1, 1.5, 2),
) -> List[Path]:
    """Draw how predictions on single images change with the radius.

    A picture shows the image at several radii, and the probability of the true class against the radius, with the
    radii at which the prediction changes. A second plot has the curves of the image enlarged and cropped to its middle,
    whose points are written to `scales.csv`.

    Args:
        probe: Models and images of the analysis.
        folder: Folder of the analysis, and of the pictures sample-FILE.png.
        files: Names of images, relative to the folder of images.
        scales: Factors by which images are enlarged, 1 or more.

    Returns:
        The pictures.

    Raises:
        ValueError: An image is not among those that were analyzed, or a scale is below 1.

    Examples:
        >>> from mlfm_zoo.frequency import analyse
        >>> models = {'memory': timm.create_model('test_mlfm_resnet', pretrained=True)}
        >>> probe = Probe(models, 'digits/val', num_workers=0)
        >>> analyse(probe, 'samples', radii=[4])
        >>> len(draw_samples(probe, 'samples', probe.files[:1], scales=[1]))
        1
    """
    if any(not 1 <= scale < float('inf') for scale in scales):
        raise ValueError(f'The scales are {list(scales)}, expected numbers of 1 or more.')
    folder, files = Path(folder), list(dict.fromkeys(files))
    names = _file_names({file: str(Path(file).with_suffix('')) for file in probe.files})
    form = read_record(folder / 'settings.json')['form']
    answers: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    columns: Dict[str, Any] = dict.fromkeys(('file', 'class', 'model', 'filter', 'predicted'), str)
    for row in read_table(folder / 'samples.csv', {**columns, 'radius': float, 'probability': float}):
        if row['file'] in files:
            answers[row['file']].append(row)
    pictures: List[Path] = []
    points: List[Tuple[Any, ...]] = []
    for file in files:
        if file not in answers:
            raise ValueError(f'{file} is not among the images that were analyzed: give names as in samples.csv.')
        image = open_image(probe.root / file, image_mode(probe.configs[0]))
        radii = sorted({row['radius'] for row in answers[file]})
        filters = [FrequencyFilter('lowpass', radius, form) for radius in radii]
        curves = _enlarged(probe, image, answers[file][0]['class'], filters, scales)
        figure = _draw_sample(probe, image, answers[file], filters, curves)
        pictures.append(_save(figure, folder / f'sample-{names[file]}.png'))
        points += [
            (file, model, f'{scale:g}', f'{radius:g}', f'{probability:.6g}', rank, probe.class_names[predicted])
            for (model, scale), curve in curves.items()
            for radius, (probability, rank, predicted) in zip(radii, curve)]
    write_table(folder / 'scales.csv', SCALE_COLUMNS, points)
    return pictures


def draw_fourier(
        folder: Union[str, Path],
        errors: Mapping[str, Mapping[Tuple[int, int], float]],
        norm: float,
) -> Path:
    """Draw each model's error rate over the plane of frequencies, DC in the middle.

    Args:
        folder: Folder of the picture, fourier.png.
        errors: What `fourier_errors` returns.
        norm: Norm of the basis vectors, for the title.

    Returns:
        The file.

    Examples:
        >>> draw_fourier('.', {'memory': {(0, 0): 0.1}}, norm=8).name
        'fourier.png'
    """
    figure, grid = require_matplotlib().subplots(
        1, len(errors), figsize=(1 + 4 * len(errors), 4), layout='constrained', squeeze=False, sharey=True)
    image: Any = None
    labels = _labels(errors)
    for axes, (model, plane) in zip(grid[0], errors.items()):
        extent = max(fy for fy, _ in plane)
        side = range(-extent, extent + 1)
        image = axes.imshow(
            [[100 * plane[fy, fx] for fx in side] for fy in side], vmin=0, vmax=100, origin='lower',
            extent=(-extent - 0.5, extent + 0.5) * 2)
        axes.set_title(labels[model], fontsize='small')
        axes.set_xlabel('cycles over the width')
    grid[0][0].set_ylabel('cycles over the height')
    figure.colorbar(image, ax=list(grid[0]), label='errors, %')
    figure.suptitle(f'One Fourier basis vector of norm {norm:g} added')
    return _save(figure, Path(folder) / 'fourier.png')


@torch.inference_mode()
def _enlarged(
        probe: Probe,
        image: Image.Image,
        true: str,
        filters: Sequence[FrequencyFilter],
        scales: Sequence[float],
) -> Curves:
    """Judge an image that is enlarged, cropped and low-pass filtered."""
    curves = {}
    labels = torch.full((len(filters),), probe.class_names.index(true), device=probe.device)
    for config, names in zip(probe.configs, probe.groups):
        for scale in scales:
            # enlarging before the crop shows a smaller part of the image, in its own finer pixels
            tensor = create_transform(**{**config, 'crop_pct': config['crop_pct'] / scale})(image)
            filtered = torch.stack([lowpass(tensor) for lowpass in filters]).to(probe.device)
            for name in names:
                curves[name, scale] = judge(probe.models[name](filtered), labels)
    return curves


def _draw_sample(
        probe: Probe,
        image: Image.Image,
        rows: Sequence[Mapping[str, Any]],
        filters: Sequence[FrequencyFilter],
        curves: Curves,
) -> Any:
    figure, axes = require_matplotlib().subplot_mosaic(
        'aabbccddeeff;ppppppssssss', height_ratios=(1, 2), figsize=(10, 6), layout='constrained')
    mean, std = (torch.tensor(probe.configs[0][key])[:, None, None] for key in ('mean', 'std'))
    tensor = create_transform(**probe.configs[0])(image)
    for i, place in enumerate('abcdef'):
        lowpass = filters[round(i * (len(filters) - 1) / 5)]
        pixels = (lowpass(tensor) * std + mean).clamp(0, 1)[:3]
        axes[place].imshow(pixels.permute(1, 2, 0).numpy(), cmap='gray')
        axes[place].set_title(f'low-pass {lowpass.upper:g}', fontsize='small')
        axes[place].axis('off')

    plain, scaled = axes['p'], axes['s']
    labels = _labels(probe.models)
    for i, model in enumerate(probe.models):
        for kind, line in LINES.items():
            shown = [row for row in rows if (row['model'], row['filter']) == (model, kind)]
            if shown:
                plain.plot([row['radius'] for row in shown], [row['probability'] for row in shown], f'C{i}{line}',
                           label=f'{labels[model]}, {kind}')
            for answer, group in groupby(shown if kind == 'lowpass' else (), lambda row: row['predicted']):
                first = next(group)
                point = first['radius'], first['probability']
                plain.plot(*point, f'C{i}o', markersize=4)
                plain.annotate(_shown(answer[:14]), point, fontsize='x-small', xytext=(3, 4 + 9 * i),
                               textcoords='offset points', color=f'C{i}')
        of_model = [(scale, curve) for (name, scale), curve in curves.items() if name == model]
        for (scale, curve), line in zip(of_model, cycle(('-', '--', ':', '-.'))):
            scaled.plot([lowpass.upper for lowpass in filters], [probability for probability, _, _ in curve],
                        f'C{i}{line}', label=f'{labels[model]}, x{scale:g}')
    plain.set(xlabel='radius, cycles per image', ylabel=f'probability of {_shown(rows[0]["class"])}',
              title='dots: where the low-pass answer changes')
    scaled.set(xlabel='low-pass radius, cycles per image', title='enlarged and cropped')
    for plot in (plain, scaled):
        plot.set_ylim(-0.03, 1.12)
        plot.legend(fontsize='x-small', loc='center right')
    figure.suptitle(_shown(rows[0]['file']))
    return figure


def _shown(name: str) -> str:
    """Escape a name for matplotlib: one visible line, and no formula."""
    return printable(name).replace('$', r'\$')


def _labels(models: Iterable[str]) -> Dict[str, str]:
    """Each model's name in a legend: the folder's for `local-dir:FOLDER`, if unique."""
    short = {model: re.sub(r'^local-dir:(?:[^,]*/)?([^/,]+)/*', r'\1', model) for model in models}
    names = list(short.values())
    return {model: _shown(name if names.count(name) == 1 else model) for model, name in short.items()}


def _file_names(wanted: Mapping[str, str]) -> Dict[str, str]:
    """A different file name for each key, as close to the wanted one as possible."""
    parts: Dict[str, str] = {}
    for key, text in wanted.items():
        part = re.sub(r'[^\w.=-]+', '_', text)
        while part in parts:
            part += '_'
        parts[part] = key
    return {key: part for part, key in parts.items()}


def _save(figure: Any, file: Path) -> Path:
    with written_whole(file) as unfinished:
        figure.savefig(unfinished, dpi=100, format='png')
    require_matplotlib().close(figure)
    return file
