"""One pass over an image folder: what models answer on every image, filtered at every radius.

Each image is decoded once and goes to the Fourier domain once for each size that the models want. Answers are written
batch by batch, and memory does not grow with the number of images. A run that was interrupted goes on with the batch
that it was at.
"""

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset

from .._files import written_whole
from ..data.folders import StrictImageDataset, image_mode, open_folder, usable_device
from .filters import FrequencyFilter, full_radius

__all__ = ['SAMPLE_COLUMNS', 'Probe', 'analyse', 'default_radii', 'judge', 'keep_settings', 'write_table']

SAMPLE_COLUMNS = ('file', 'class', 'model', 'filter', 'radius', 'probability', 'rank', 'predicted')
SKIPPED_COLUMNS = ('file', 'why')


def default_radii(height: int, width: int) -> List[float]:
    """The radii that are looked at if none are given: 0, the full radius, and 12 between, closer to one another near 0.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        Radii in cycles per image, ascending.
    """
    full = full_radius(height, width)
    return sorted({0.0, *(float(round(full * (i / 13) ** 1.5)) for i in range(1, 14))})


class Batch(NamedTuple):
    """A batch of the pass.

    Attributes:
        start: Number of images of the folder before it.
        files: Names of its readable images, relative to the folder.
        labels: Their classes (N,).
        images: The images (N, C, H, W) as each group of models wants them.
        skipped: Names of those that cannot be decoded.
    """
    start: int
    files: List[str]
    labels: torch.Tensor
    images: List[torch.Tensor]
    skipped: List[str]


class Probe:
    """Models, and the images of a folder as these models want them.

    Models whose pretrained configs prepare images in the same way form a group.

    Args:
        models: timm models by the names under which they are reported.
        root: Folder with one folder of images a class.
        class_names: As `mlfm_zoo.workflow.evaluate.evaluate`.
        img_size: Image size in pixels, instead of the configs'.
        batch_size: Images a batch.
        num_workers: Processes that read images.
        device: Where the models run.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
        ValueError: There is no model, no such device, or the classes do not fit a model.
    """

    def __init__(
            self,
            models: Mapping[str, nn.Module],
            root: Union[str, Path],
            class_names: Optional[Sequence[str]] = None,
            img_size: Optional[int] = None,
            batch_size: int = 32,
            num_workers: int = 2,
            device: Union[str, torch.device] = 'cpu',
    ):
        if not models:
            raise ValueError('There is no model to look at: give at least one.')
        self.device = usable_device(device)
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.models = {name: model.to(self.device).eval() for name, model in models.items()}
        self.configs: List[Dict[str, Any]] = []
        self.groups: List[List[str]] = []
        dataset: Optional[StrictImageDataset] = None
        for name, model in self.models.items():
            if dataset is None or model.num_classes != next(iter(self.models.values())).num_classes:
                dataset = open_folder(root, getattr(model, 'num_classes', 0), class_names)
            config = resolve_model_data_config(model, args=dict(img_size=img_size) if img_size else None)
            if config not in self.configs:
                self.configs.append(config)
                self.groups.append([])
            self.groups[self.configs.index(config)].append(name)
        assert dataset is not None
        self.reader = dataset.reader
        if class_names is None:
            class_names = sorted(self.reader.class_to_idx, key=self.reader.class_to_idx.__getitem__)
        self.class_names = list(class_names)
        self.files = [self.reader.filename(i) for i in range(len(self.reader))]

    @property
    def settings(self) -> Dict[str, Any]:
        """What a run that goes on must have in common with the one before."""
        return dict(
            models=list(self.models), data=str(self.root.resolve()), images=len(self.files), classes=self.class_names,
            sizes=self.sizes, batch_size=self.batch_size)

    @property
    def sizes(self) -> List[Tuple[int, int]]:
        """Height and width of the images of each group."""
        return [tuple(config['input_size'][1:]) for config in self.configs]

    def batches(self, start: int = 0, progress: bool = False) -> Iterator[Batch]:
        """Walk over the images.

        Args:
            start: Number of images to leave out, whole batches.
            progress: Whether to print how far it is.

        Yields:
            The batches.
        """
        images = _Images(self.reader, self.configs, start)
        loader: DataLoader[Any] = DataLoader(
            images, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list)
        done = start
        for items in loader:
            names = self.files[done:done + len(items)]
            whole = [(name, tensors, label) for name, (tensors, label) in zip(names, items) if tensors is not None]
            skipped = [name for name, (tensors, _) in zip(names, items) if tensors is None]
            stacked = [
                torch.stack([tensors[i] for _, tensors, _ in whole]).to(self.device) for i in range(len(self.configs))
            ] if whole else []
            labels = torch.tensor([label for _, _, label in whole], dtype=torch.long, device=self.device)
            yield Batch(done, [name for name, _, _ in whole], labels, stacked, skipped)
            done += len(items)
            if progress:
                print(f'\r{done}/{len(self.files)} images', end='', file=sys.stderr, flush=True)
        if progress:
            print(file=sys.stderr)


class _Images(Dataset[Any]):
    """The images of a folder from number `start` on, each as every group of models wants it; None if unreadable."""

    def __init__(self, reader: Any, configs: List[Dict[str, Any]], start: int):
        self.reader = reader
        self.start = start
        self.modes = [image_mode(config) for config in configs]
        self.transforms = [create_transform(**config) for config in configs]

    def __len__(self) -> int:
        return len(self.reader) - self.start

    def __getitem__(self, index: int) -> Tuple[Optional[List[torch.Tensor]], int]:
        file, label = self.reader[self.start + index]
        try:
            with file, Image.open(file) as image:
                image.load()
                return [t(image.convert(mode)) for t, mode in zip(self.transforms, self.modes)], label
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None, label


def analyse(
        probe: Probe,
        output: Union[str, Path],
        radii: Optional[Sequence[float]] = None,
        filters: Sequence[str] = ('lowpass', 'highpass'),
        form: str = 'ideal',
        pixels: bool = False,
        progress: bool = False,
) -> None:
    """Write what models answer on the filtered images of a folder to `samples.csv`, a row an answer.

    Its columns: file; class; model; filter; radius in cycles per image; probability and rank, from 1, of the true
    class; the predicted class. Images that cannot be decoded are left out and listed in `skipped.csv`.

    Args:
        probe: The models and images.
        output: Folder to write to. If it holds a part of the same analysis, that is gone on with.
        radii: Radii in cycles per image, to which 0 and the full radius are added; `default_radii` if None.
        filters: Kinds of filters, 'lowpass' and 'highpass'.
        form: Form of the filters, 'ideal' or 'gaussian'.
        pixels: Whether pixels are filtered, and not the normalised tensors; the two differ in DC alone.
        progress: Whether to print how far it is.

    Raises:
        ValueError: An argument is out of range, no image can be decoded, or `output` holds another analysis.
    """
    if radii is not None and not len(radii):
        raise ValueError('There is no radius to look at: give at least one, in cycles per image, or leave them out.')
    if not filters or set(filters) - {'lowpass', 'highpass'}:
        raise ValueError(f"The filters are {list(filters)}, expected 'lowpass', 'highpass' or both.")
    fullest = max(probe.sizes, key=lambda size: full_radius(*size))
    wanted = default_radii(*fullest) if radii is None else list(radii)
    for radius in wanted:
        FrequencyFilter('lowpass', radius, form)  # refuses what is no radius
    wanted = sorted({0.0, float(full_radius(*fullest)), *map(float, wanted)})
    kinds = [kind for kind in ('lowpass', 'highpass') if kind in filters]
    output = Path(output)
    keep_settings(output / 'settings.json', dict(
        **probe.settings, filters=kinds, radii=wanted, form=form, pixels=pixels))
    applied = [[
        FrequencyFilter(kind, radius, form, *((config['mean'], config['std']) if pixels else ()))
        for kind in kinds for radius in wanted] for config in probe.configs]

    samples, skipped = output / 'samples.csv', output / 'skipped.csv'
    numbers = {file: i for i, file in enumerate(probe.files)}
    rows_per_image = len(probe.models) * len(kinds) * len(wanted)
    start = _resume(samples, skipped, numbers, rows_per_image, probe.batch_size)
    with open(samples, 'a', newline='', encoding='utf-8') as s, open(skipped, 'a', newline='', encoding='utf-8') as k:
        answers, faults = csv.writer(s), csv.writer(k)
        for batch in probe.batches(start, progress):
            for name in batch.skipped:
                faults.writerow([name, 'cannot be decoded as an image'])
            if batch.files:
                for rows in _answer(probe, batch, applied):
                    answers.writerows(rows)
            for file in (k, s):
                file.flush()
                os.fsync(file.fileno())
    with open(samples, newline='', encoding='utf-8') as s:
        if next(csv.DictReader(s), None) is None:
            raise ValueError(
                f'None of the {len(probe.files)} images in {probe.root} can be decoded: give a folder of images.')


@torch.inference_mode()
def _answer(probe: Probe, batch: Batch, applied: List[List[FrequencyFilter]]) -> List[List[List[Any]]]:
    """Rows of samples.csv for each image of a batch."""
    rows: List[List[List[Any]]] = [[] for _ in batch.files]
    for images, filters, names in zip(batch.images, applied, probe.groups):
        spectrum = torch.fft.rfft2(images)
        found: Dict[str, List[List[List[Any]]]] = {name: [] for name in names}
        for frequency_filter in filters:
            filtered = frequency_filter(images, spectrum)
            for name in names:
                found[name].append(judge(probe.models[name](filtered), batch.labels))
        for name, answers in found.items():
            for frequency_filter, columns in zip(filters, answers):
                for row, file, label, (probability, rank, predicted) in zip(
                        rows, batch.files, batch.labels.tolist(), columns):
                    row.append([
                        file, probe.class_names[label], name, frequency_filter.kind, f'{frequency_filter.upper:g}',
                        f'{probability:.6g}', rank, probe.class_names[predicted]])
    return rows


def judge(logits: torch.Tensor, labels: torch.Tensor) -> List[List[Any]]:
    """Judge answers.

    Args:
        logits: Answers (N, classes).
        labels: True classes (N,).

    Returns:
        Probability and rank, from 1, of the true class, and the predicted class, for each image. Of equal logits the
        first counts as the higher one, and a logit that is no number as the lowest rank.
    """
    logits = logits.float()
    true = logits.gather(1, labels[:, None])
    later = torch.arange(logits.shape[1], device=logits.device) > labels[:, None]
    rank = logits.shape[1] - ((logits < true) | (logits == true) & later).sum(1)
    probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return [list(row) for row in zip(probability.tolist(), rank.tolist(), logits.argmax(1).tolist())]


def keep_settings(file: Path, settings: Dict[str, Any]) -> None:
    """Write the settings of an analysis, or refuse those that differ from what is there.

    Args:
        file: JSON file in the folder of the analysis.
        settings: What must be the same when it goes on.

    Raises:
        ValueError: The folder holds an analysis with other settings.
    """
    settings = json.loads(json.dumps(settings))
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding='utf-8'))
        except ValueError:
            before = {}
        changed = [name for name in settings if not isinstance(before, dict) or before.get(name) != settings[name]]
        if changed:
            raise ValueError(
                f'{file.parent} holds an analysis with other settings ({", ".join(changed)}): name another folder, or '
                'remove it.')
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as unfinished:
        unfinished.write_text(json.dumps(settings, indent=1) + '\n', encoding='utf-8')


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table as a whole.

    Args:
        file: CSV file.
        columns: Its first line.
        rows: Its other lines.
    """
    with written_whole(file) as unfinished, open(unfinished, 'w', newline='', encoding='utf-8') as f:
        table = csv.writer(f)
        table.writerow(columns)
        table.writerows(rows)


def _resume(samples: Path, skipped: Path, numbers: Dict[str, int], rows_per_image: int, batch_size: int) -> int:
    """Cut both tables to whole batches, and return how many images these have."""
    counts: Dict[str, int] = {}
    for _, row in _rows(samples, SAMPLE_COLUMNS):
        counts[row[0]] = counts.get(row[0], 0) + 1
    done = {file for file, count in counts.items() if count == rows_per_image}
    done |= {row[0] for _, row in _rows(skipped, SKIPPED_COLUMNS)}
    start = 0
    files = list(numbers)
    while start < len(files) and all(file in done for file in files[start:start + batch_size]):
        start = min(start + batch_size, len(files))
    for file, columns in ((samples, SAMPLE_COLUMNS), (skipped, SKIPPED_COLUMNS)):
        end = 0
        for end_of_row, row in _rows(file, columns):
            if numbers.get(row[0], len(files)) >= start:
                break
            end = end_of_row
        if end:
            os.truncate(file, end)
        else:
            file.write_text(','.join(columns) + '\r\n', encoding='utf-8', newline='')
    return start


def _rows(file: Path, columns: Sequence[str]) -> Iterator[Tuple[int, List[str]]]:
    """The whole rows of a table, each with the place in the file where it ends, the heading left out."""
    if not file.exists():
        return
    with open(file, 'rb') as f:
        for line in iter(f.readline, b''):
            text = line.decode(errors='replace')
            row = next(csv.reader([text]), [])
            if not text.endswith('\r\n') or len(row) != len(columns):
                return
            if row != list(columns):
                yield f.tell(), row
