"""One pass over an image folder: models' predictions at every filter radius.

Each image is decoded once, and transformed to the Fourier domain once per size that the models take. Predictions are
written batch by batch, so memory does not grow with the number of images. An interrupted run resumes at its last batch.
"""

import csv
import functools
import os
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from huggingface_hub.utils import tqdm
from timm.data import create_transform
from torch.utils.data import DataLoader

from ..data.filters import FrequencyFilter, full_radius
from ..data.folders import data_config, image_mode, open_folder, usable_device
from ..data.images import UnreadableImage, convert_pixels, open_image
from .tables import damage, open_table, read_record, resumable, write_record

__all__ = ['Probe', 'analyse', 'default_radii', 'judge']

SAMPLE_COLUMNS = ('file', 'class', 'model', 'filter', 'radius', 'probability', 'rank', 'predicted')
SKIPPED_COLUMNS = ('file', 'why')


def default_radii(height: int, width: int) -> List[float]:
    """Default radii of an analysis: 0, the full radius, and 12 between, denser near 0.

    Args:
        height: Height of the images in pixels.
        width: Width of the images in pixels.

    Returns:
        Radii in cycles per image, ascending.

    Examples:
        >>> default_radii(64, 64)
        [0.0, 1.0, 3.0, 5.0, 8.0, 11.0, 14.0, 18.0, 22.0, 26.0, 31.0, 36.0, 41.0, 46.0]
    """
    full = full_radius(height, width)
    return sorted({0.0, *(float(round(full * (i / 13) ** 1.5)) for i in range(1, 14))})


class Batch(NamedTuple):
    """The images of a folder from number `start` to `end`."""
    start: int
    end: int
    files: List[str]  # readable images, relative to the folder
    labels: torch.Tensor  # their classes (N,)
    images: List[torch.Tensor]  # (N, C, H, W), prepared for each group of models
    skipped: List[Tuple[str, str]]  # unreadable images, and why


class Probe:
    """Models, and the images of a folder prepared for them.

    Models whose pretrained configs prepare images in the same way form a group.

    Args:
        models: timm models by their names in the results.
        root: Folder with one folder of images per class.
        class_names: As `mlfm_zoo.workflow.evaluate.evaluate`.
        img_size: Image size in pixels, instead of the configs'.
        batch_size: Images per batch.
        num_workers: Processes that read images.
        device: Where the models run.

    Raises:
        FileNotFoundError: `root` is not a folder, or holds no images of these classes.
        ValueError: There is no model, no such device, or the classes do not fit a model.

    Examples:
        >>> models = {'memory': timm.create_model('test_mlfm_resnet', pretrained=True)}
        >>> probe = Probe(models, 'digits/val', num_workers=0)
        >>> len(probe.files), probe.sizes
        (32, [(64, 64)])
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
            raise ValueError('There is no model to analyze: give at least one.')
        self.device = usable_device(device)
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.models = {name: model.to(self.device).eval() for name, model in models.items()}
        readers = [open_folder(root, model, class_names).reader for model in models.values()]
        self.reader = readers[0]
        if any(reader.class_to_idx != self.reader.class_to_idx for reader in readers):
            raise ValueError('The models name their classes differently: analyze them one by one.')
        self.configs: List[Dict[str, Any]] = []
        self.groups: List[List[str]] = []
        for name, model in self.models.items():
            config = data_config(model, img_size)
            if config not in self.configs:
                self.configs.append(config)
                self.groups.append([])
            self.groups[self.configs.index(config)].append(name)
        self.class_names = list(self.reader.class_to_idx)
        self.files = [self.reader.filename(i) for i in range(len(self.reader))]
        self.sizes: List[Tuple[int, int]] = [tuple(config['input_size'][1:]) for config in self.configs]
        # must stay the same when a run resumes
        self.settings: Dict[str, Any] = dict(
            models=list(self.models), data=str(self.root.resolve()), images=len(self.files), classes=self.class_names,
            sizes=self.sizes, batch_size=batch_size)

    def batches(self, start: int = 0, progress: bool = False) -> Iterator[Batch]:
        """Iterate over the images.

        Args:
            start: Number of images to skip, in whole batches.
            progress: Whether to show a progress bar.

        Yields:
            The batches.
        """
        left: Any = range(start, len(self.files))
        loader: DataLoader[Any] = DataLoader(
            left, batch_size=self.batch_size, num_workers=self.num_workers,
            collate_fn=functools.partial(_read, self.reader, self.configs))
        for batch in tqdm(loader, disable=not progress):
            images = [group.to(self.device) for group in batch.images]
            yield batch._replace(labels=batch.labels.to(self.device), images=images)

    def nothing_decoded(self) -> ValueError:
        """Make the error for a folder without any image that can be decoded."""
        return ValueError(
            f'None of the {len(self.files)} images in {self.root} can be decoded: give a folder of images.')


def _read(reader: Any, configs: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Batch:
    """Read images in a worker of the loader."""
    prepare = [(image_mode(config), create_transform(**config)) for config in configs]
    files, labels, images, skipped = [], [], [], []
    for i in indices:
        file, label = reader.samples[i]
        try:
            image = open_image(file, mode=None)
            images.append([transform(convert_pixels(image, mode, file)) for mode, transform in prepare])
        except UnreadableImage as error:
            skipped.append((reader.filename(i), str(error)))
        else:
            files.append(reader.filename(i))
            labels.append(label)
    groups = [torch.stack(group) for group in zip(*images)]
    return Batch(indices[0], indices[-1] + 1, files, torch.tensor(labels, dtype=torch.long), groups, skipped)


def analyse(
        probe: Probe,
        output: Union[str, Path],
        radii: Optional[Sequence[float]] = None,
        filters: Sequence[str] = ('lowpass', 'highpass'),
        form: str = 'ideal',
        pixels: bool = False,
        progress: bool = False,
) -> None:
    """Write predictions on a folder's filtered images to `samples.csv`, one per row.

    The columns are file, class, model, filter, radius in cycles per image, probability and rank (from 1) of the true
    class, and predicted class. Unreadable images are listed in `skipped.csv`, with the reason.

    Args:
        probe: The models and images.
        output: Folder to write to. If it holds a part of the same analysis, the run resumes.
        radii: Radii in cycles per image; 0 and the full radius are added. `default_radii` if None.
        filters: Kinds of filters, 'lowpass' and 'highpass'.
        form: Form of the filters, 'ideal' or 'gaussian'.
        pixels: Whether to filter pixels instead of the normalized tensors; the two differ in DC only.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An argument is out of range, no image can be decoded, or `output` holds another or a damaged
            analysis.
        RuntimeError: Another run writes to `output`.

    Examples:
        >>> models = {'memory': timm.create_model('test_mlfm_resnet', pretrained=True)}
        >>> probe = Probe(models, 'digits/val', num_workers=0)
        >>> analyse(probe, 'analysis', radii=[4])
        >>> mlfm_zoo.frequency.overall_level('analysis')[0].n
        32
    """
    if not filters or set(filters) - {'lowpass', 'highpass'}:
        raise ValueError(f"The filters are {list(filters)}, expected 'lowpass', 'highpass' or both.")
    if radii is not None and not len(radii):
        raise ValueError('There is no radius to analyze: give at least one in cycles per image, or leave radii out.')
    largest = max(probe.sizes, key=lambda size: full_radius(*size))
    chosen = default_radii(*largest) if radii is None else radii
    wanted = sorted({0.0, float(full_radius(*largest)), *map(float, chosen)})
    kinds = [kind for kind in ('lowpass', 'highpass') if kind in filters]
    applied = [[
        FrequencyFilter(kind, radius, form, *((config['mean'], config['std']) if pixels else ()))
        for kind in kinds for radius in wanted] for config in probe.configs]
    output = Path(output)
    settings = dict(**probe.settings, filters=kinds, radii=wanted, form=form, pixels=pixels)
    with resumable(output, 'settings.json', settings):
        state = output / 'progress.json'  # sizes after the last whole batch: a killed run may have written more
        done = dict(images=0, answered=0, samples=0, skipped=0)
        if state.exists():
            record = read_record(state)
            with damage(state):
                done = {name: int(record[name]) for name in done}
                if not 0 <= done['answered'] <= done['images'] <= len(probe.files):
                    raise ValueError('a count is out of range')
        with _reopened(output / 'samples.csv', SAMPLE_COLUMNS, done['samples']) as samples, \
                _reopened(output / 'skipped.csv', SKIPPED_COLUMNS, done['skipped']) as skipped:
            for batch in probe.batches(done['images'], progress):
                csv.writer(skipped).writerows(batch.skipped)
                csv.writer(samples).writerows(_answer(probe, batch, applied))
                done = dict(
                    images=batch.end, answered=done['answered'] + len(batch.files),
                    samples=_size_on_disk(samples), skipped=_size_on_disk(skipped))
                write_record(state, done)
    if not done['answered']:
        raise probe.nothing_decoded()


def _reopened(file: Path, columns: Sequence[str], size: int) -> IO[str]:
    """Reopen a table cut to `size` bytes (whole batches), or begin one if size is 0."""
    if size:
        if file.stat().st_size < size:
            with damage(file):
                raise ValueError('it lacks its end')
        os.truncate(file, size)
        return open_table(file, 'a')
    f = open_table(file, 'w')
    csv.writer(f).writerow(columns)
    return f


def _size_on_disk(f: IO[str]) -> int:
    f.flush()
    os.fsync(f.fileno())
    return os.fstat(f.fileno()).st_size


@torch.inference_mode()
def _answer(probe: Probe, batch: Batch, applied: List[List[FrequencyFilter]]) -> List[List[Any]]:
    """Rows of samples.csv for a batch, image by image."""
    answers: Dict[str, List[Tuple[FrequencyFilter, List[List[Any]]]]] = {name: [] for name in probe.models}
    for images, filters, names in zip(batch.images, applied, probe.groups):
        spectrum = torch.fft.rfft2(images)
        for frequency_filter in filters:
            filtered = frequency_filter(images, spectrum)
            for name in names:
                answers[name].append((frequency_filter, judge(probe.models[name](filtered), batch.labels)))
    rows = []
    for i, (file, label) in enumerate(zip(batch.files, batch.labels.tolist())):
        for name, of_model in answers.items():
            for frequency_filter, judged in of_model:
                probability, rank, predicted = judged[i]
                rows.append([
                    file, probe.class_names[label], name, frequency_filter.kind, f'{frequency_filter.upper:g}',
                    f'{probability:.6g}', rank, probe.class_names[predicted]])
    return rows


def judge(logits: torch.Tensor, labels: torch.Tensor) -> List[List[Any]]:
    """Judge logits (N, classes) by the true classes (N,).

    For each image: probability and rank (from 1) of the true class, and the predicted class. Of equal logits the first
    counts as higher; a NaN logit gets the lowest rank.
    """
    logits = logits.float()
    true = logits.gather(1, labels[:, None])
    later = torch.arange(logits.shape[1], device=logits.device) > labels[:, None]
    rank = logits.shape[1] - ((logits < true) | (logits == true) & later).sum(1)
    probability = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    return [list(row) for row in zip(probability.tolist(), rank.tolist(), logits.argmax(1).tolist())]
