"""Pictures of an analysis: curves, classes, samples and the plane of frequencies."""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Tuple, Union

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
SHOWN_RADII = 6  # filtered images in the picture of a sample
LINES = {'lowpass': '-', 'highpass': '--'}


class Point(NamedTuple):
    """A row of scales.csv: a prediction on an image, enlarged and low-pass filtered."""
    file: str
    model: str
    scale: float
    radius: float
    probability: float
    rank: int
    predicted: str


def draw_levels(folder: Union[str, Path], rows: Sequence[Overall], curves: Sequence[ClassCurve]) -> List[Path]:
    """Draw accuracy against radius, and the sensitive bands of the classes.

    Args:
        folder: Folder of the pictures: overall.png, bands.png, and classes-MODEL.png for each model.
        rows: Rows of `overall_level`.
        curves: Curves of `class_level`.

    Returns:
        The files.

    Example:
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
            shown = sorted((row for row in rows if (row.model, row.filter) == (model, kind)), key=lambda r: r.radius)
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

    Example:
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
    answers, form = _answers_on(folder / 'samples.csv', files), read_record(folder / 'settings.json')['form']
    pictures, points = [], []
    for file in files:
        if file not in answers:
            raise ValueError(f'{file} is not among the images that were analyzed: give names as in samples.csv.')
        image = open_image(probe.root / file, image_mode(probe.configs[0]))
        radii = sorted({row['radius'] for row in answers[file]})
        filters = [FrequencyFilter('lowpass', radius, form) for radius in radii]
        of_file = _points(probe, file, image, answers[file][0]['class'], filters, scales)
        figure = _draw_sample(probe, image, answers[file], filters, of_file)
        pictures.append(_save(figure, folder / f'sample-{names[file]}.png'))
        points += of_file
    write_table(folder / 'scales.csv', Point._fields, [
        (p.file, p.model, f'{p.scale:g}', f'{p.radius:g}', f'{p.probability:.6g}', p.rank, p.predicted)
        for p in points])
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

    Example:
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


def _answers_on(samples: Path, files: Sequence[str]) -> Dict[str, List[Dict[str, Any]]]:
    """Rows of samples.csv by image, each by ascending radius."""
    answers: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    with read_table(samples) as rows:
        for row in rows:
            if row['file'] in files:
                answers[row['file']].append(
                    dict(row, radius=float(row['radius']), probability=float(row['probability'])))
    return {file: sorted(rows, key=lambda row: row['radius']) for file, rows in answers.items()}


@torch.inference_mode()
def _points(
        probe: Probe,
        file: str,
        image: Image.Image,
        true: str,
        filters: Sequence[FrequencyFilter],
        scales: Sequence[float],
) -> List[Point]:
    """Predictions on an image that is enlarged, cropped and low-pass filtered."""
    points = []
    labels = torch.tensor([probe.class_names.index(true)], device=probe.device)
    for config, names in zip(probe.configs, probe.groups):
        for scale in scales:
            # enlarging before the crop shows a smaller part of the image, in its own finer pixels
            transform = create_transform(**{**config, 'crop_pct': config['crop_pct'] / scale})
            tensor = transform(image)[None].to(probe.device)
            for lowpass in filters:
                filtered = lowpass(tensor)
                for name in names:
                    [[probability, rank, predicted]] = judge(probe.models[name](filtered), labels)
                    points.append(
                        Point(file, name, scale, lowpass.upper, probability, rank, probe.class_names[predicted]))
    return points


def _draw_sample(
        probe: Probe,
        image: Image.Image,
        rows: Sequence[Mapping[str, Any]],
        filters: Sequence[FrequencyFilter],
        points: Sequence[Point],
) -> Any:
    figure = require_matplotlib().figure(figsize=(10, 6), layout='constrained')
    grid = figure.add_gridspec(2, 2 * SHOWN_RADII, height_ratios=(1, 2))
    tensor = create_transform(**probe.configs[0])(image)
    for i in range(SHOWN_RADII):
        lowpass = filters[round(i * (len(filters) - 1) / (SHOWN_RADII - 1))]
        axes = figure.add_subplot(grid[0, 2 * i:2 * i + 2])
        axes.imshow(_pixels(lowpass(tensor), probe.configs[0]), cmap='gray')
        axes.set_title(f'low-pass {lowpass.upper:g}', fontsize='small')
        axes.axis('off')

    plain = figure.add_subplot(grid[1, :SHOWN_RADII])
    enlarged = figure.add_subplot(grid[1, SHOWN_RADII:])
    scales = list(dict.fromkeys(point.scale for point in points))
    labels = _labels(probe.models)
    for i, model in enumerate(probe.models):
        for kind, line in LINES.items():
            shown = [row for row in rows if (row['model'], row['filter']) == (model, kind)]
            if shown:
                plain.plot([row['radius'] for row in shown], [row['probability'] for row in shown], f'C{i}{line}',
                           label=f'{labels[model]}, {kind}')
            answer = None
            for row in shown if kind == 'lowpass' else ():
                if row['predicted'] != answer:
                    answer = row['predicted']
                    place = row['radius'], row['probability']
                    plain.plot(*place, f'C{i}o', markersize=4)
                    plain.annotate(_shown(answer[:14]), place, fontsize='x-small', xytext=(3, 4 + 9 * i),
                                   textcoords='offset points', color=f'C{i}')
        for j, scale in enumerate(scales):
            at_scale = [point for point in points if (point.model, point.scale) == (model, scale)]
            enlarged.plot([p.radius for p in at_scale], [p.probability for p in at_scale],
                          f'C{i}{("-", "--", ":", "-.")[j % 4]}', label=f'{labels[model]}, x{scale:g}')
    plain.set(xlabel='radius, cycles per image', ylabel=f'probability of {_shown(rows[0]["class"])}',
              title='dots: where the low-pass answer changes')
    enlarged.set(xlabel='low-pass radius, cycles per image', title='enlarged and cropped')
    for axes in (plain, enlarged):
        axes.set_ylim(-0.03, 1.12)
        axes.legend(fontsize='x-small', loc='center right')
    figure.suptitle(_shown(rows[0]['file']))
    return figure


def _pixels(tensor: torch.Tensor, config: Mapping[str, Any]) -> Any:
    """A normalized image (C, H, W) as pixels (H, W, C) or (H, W) from 0 to 1."""
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    pixels = (tensor * std + mean).clamp(0, 1)
    return pixels[0].numpy() if len(pixels) == 1 else pixels[:3].permute(1, 2, 0).numpy()


def _shown(name: str) -> str:
    """Escape a name for matplotlib: one visible line, and no formula."""
    return printable(name).replace('$', r'\$')


def _labels(models: Iterable[str]) -> Dict[str, str]:
    """Each model's name in a legend: the folder's for `local-dir:FOLDER`, if unique."""
    short = {model: re.sub(r'^local-dir:(?:[^,]*/)?([^/,]+)/*', r'\1', model) for model in models}
    counts = Counter(short.values())
    return {model: _shown(name if counts[name] == 1 else model) for model, name in short.items()}


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
