"""Classify images with a pretrained network, and name the most probable classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn
from PIL import Image, ImageDraw, ImageFont, ImageOps
from timm.data import ImageNetInfo, create_transform

from .._files import written_whole
from .._terminal import printable
from .._timm import config_of
from ..data import imagenet100
from ..data.folders import data_config, image_mode, label_names, usable_device, walk_images
from ..data.images import UnreadableImage, open_image
from ..hub.loading import cached_checkpoint
from ..hub.manifest import Checkpoint, load_manifest

__all__ = [
    'Answer', 'Prediction', 'better_checkpoints', 'class_labels', 'draw_predictions', 'find_images', 'is_here',
    'predict', 'trained_checkpoints',
]

TRAINED_KINDS = ('embedded', 'paper', 'trained')  # of the others, the memory has learned nothing yet

TILE = 256  # pixels a side of an image in a picture of predictions
LINE = 18  # pixels of a line of text below it
MAX_TILES = 400  # images in a picture


@dataclass(frozen=True)
class Answer:
    """One answer: index of the output from 0, its class in words, and its probability."""
    index: int
    label: str
    probability: float


class Prediction(NamedTuple):
    """The answers on one image, the most probable first."""
    file: Path
    answers: List[Answer]


def is_here(checkpoint: Checkpoint) -> bool:
    """Whether the weights are on this machine, in the package or in the cache.

    Args:
        checkpoint: Any checkpoint.

    Returns:
        Whether its file was found; it is not verified.

    Examples:
        >>> is_here(trained_checkpoints()[0])
        True
    """
    return cached_checkpoint(checkpoint) is not None


def trained_checkpoints() -> List[Checkpoint]:
    """List checkpoints with a trained memory: local ones first, each group best first.

    Accuracies on different data cannot be compared, so more classes come before a higher accuracy. The networks of the
    tests are last.

    Returns:
        The checkpoints.

    Examples:
        >>> trained_checkpoints()[0].memory
        True
    """
    found = [c for c in load_manifest().values() if c.memory and c.available and c.kind in TRAINED_KINDS]
    return sorted(found, key=lambda c: (not is_here(c), *_rank(c)))


def better_checkpoints(than: Checkpoint) -> List[Checkpoint]:
    """List checkpoints to download that rank before one on this machine.

    Args:
        than: The one on this machine.

    Returns:
        The others, the best first.

    Examples:
        >>> any(is_here(c) for c in better_checkpoints(trained_checkpoints()[0]))
        False
    """
    return [c for c in trained_checkpoints() if not is_here(c) and _rank(c) < _rank(than)]


def _rank(checkpoint: Checkpoint) -> Tuple[bool, int, float]:
    figures = checkpoint.reported or checkpoint.measured
    top1 = max((value for name, value in figures.items() if not name.startswith('top-5')), default=0.0)
    return checkpoint.model.startswith('test_'), -checkpoint.num_classes, -top1


def class_labels(model: nn.Module) -> List[str]:
    """Describe the classes of a network in words.

    Args:
        model: A timm model.

    Returns:
        A label for each output. It comes from the model's config; from ImageNet-1k or ImageNet100 if the tag of
        registered weights names them, as in `a1_in1k`; and is the index otherwise.

    Examples:
        >>> class_labels(timm.create_model('test_mlfm_resnet'))[:3]
        ['0', '1', '2']
    """
    config, num_classes = config_of(model), getattr(model, 'num_classes', 0)
    names = label_names(model)
    if names is not None:
        descriptions: Dict[str, str] = config.get('label_descriptions') or {}
        return [descriptions.get(name, name) for name in names]
    # a folder or a file of the caller may hold fine-tuned weights under the tag of the original ones
    given = config.get('source') == 'local-dir' or config.get('file') or config.get('state_dict')
    official = not given and (config.get('hf_hub_id') or 'timm/').startswith('timm/')
    datasets = (config.get('tag') or '').split('_') if official else []
    if num_classes == 1000 and 'in1k' in datasets:
        info = ImageNetInfo('imagenet-1k')
        return [info.index_to_description(index) for index in range(num_classes)]
    if num_classes == len(imagenet100.SYNSETS) and 'in100' in datasets:
        return list(imagenet100.label_descriptions().values())
    return [f'class {index}' for index in range(num_classes)]


def find_images(paths: Sequence[Union[str, Path]]) -> List[Path]:
    """Find files of images.

    Args:
        paths: Files, and folders to search by `data.folders.walk_images`.

    Returns:
        Files in the order given; those in a folder are sorted by name.

    Raises:
        FileNotFoundError: A path is not there, or a folder holds no images.

    Examples:
        >>> find_images(['photo.jpg'])[0].name
        'photo.jpg'
    """
    readable = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: List[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = walk_images(path, readable)
            if not found:
                raise FileNotFoundError(f'{path} holds no images: give files, or a folder that has some in it.')
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f'There is no image at {path}: give the path of a file or a folder.')
    return files


def predict(
        model: nn.Module,
        files: Iterable[Path],
        topk: int = 5,
        device: Union[str, torch.device] = 'cpu',
        labels: Optional[Sequence[str]] = None,
) -> Iterator[Tuple[Path, Union[Prediction, str]]]:
    """Classify images one by one.

    Args:
        model: A timm model; its pretrained config says how images are prepared.
        files: Files of images.
        topk: Answers for each image, at most as many as the network has outputs.
        device: Where the model runs.
        labels: Labels of the network's outputs; those of `class_labels` if None.

    Yields:
        Each file with its prediction, or with an error as one sentence.

    Raises:
        ValueError: There is no such device, the network has no classifier, or labels and outputs differ in number.

    Examples:
        >>> model = timm.create_model('test_mlfm_resnet', pretrained=True)
        >>> [(file, prediction)] = predict(model, find_images(['digits/val/3'])[:1])
        >>> prediction.answers[0].label
        '3'
    """
    labels = class_labels(model) if labels is None else labels
    if not model.num_classes or len(labels) != model.num_classes:
        raise ValueError(
            f'The network has {model.num_classes} outputs, expected {len(labels) or "at least one"}: give its labels, '
            'or build it with num_classes.')
    device = usable_device(device)
    model = model.to(device).eval()
    config = data_config(model)
    transform = create_transform(**config)
    mode = image_mode(config)
    for file in files:
        try:
            image = open_image(file, mode)
        except UnreadableImage as error:
            yield file, str(error)
            continue
        batch = transform(image)[None].to(device)
        with torch.inference_mode():
            probabilities = model(batch).float().softmax(dim=1)[0].cpu()
        values, indices = probabilities.topk(min(topk, len(probabilities)))
        answers = [Answer(i, labels[i], p) for i, p in zip(indices.tolist(), values.tolist())]
        yield file, Prediction(file, answers)


def draw_predictions(predictions: Sequence[Prediction], output: Union[str, Path]) -> None:
    """Draw images with their answers below them, in rows of four.

    Args:
        predictions: What to draw.
        output: File to write; its extension is one that Pillow knows.

    Raises:
        OSError: The file cannot be written.
        ValueError: The extension is unknown, the file is one of the images, or there are too many images.

    Examples:
        >>> prediction = Prediction(Path('photo.jpg'), [Answer(0, 'pavilion', 0.9)])
        >>> draw_predictions([prediction], 'predictions.png')
    """
    output = Path(output)
    if len(predictions) > MAX_TILES:
        raise ValueError(f'{len(predictions)} images do not fit in one picture: give at most {MAX_TILES}.')
    if any(output.exists() and output.samefile(prediction.file) for prediction in predictions):
        raise ValueError(f'{output} is one of the images: name another file.')
    if output.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f'{output} has no ending of a picture: give one such as .png.')
    font = ImageFont.load_default(13)
    columns = min(4, len(predictions))
    height = TILE + LINE * (max(len(p.answers) for p in predictions) + 1)
    rows = -(-len(predictions) // columns)
    picture = Image.new('RGB', (columns * (TILE + 16) + 16, rows * (height + 8) + 16), 'white')
    draw = ImageDraw.Draw(picture)
    for i, prediction in enumerate(predictions):
        left, top = 16 + i % columns * (TILE + 16), 16 + i // columns * (height + 8)
        fitted = ImageOps.contain(open_image(prediction.file), (TILE, TILE))
        picture.paste(fitted, (left + (TILE - fitted.width) // 2, top + (TILE - fitted.height) // 2))
        for line, answer in enumerate(prediction.answers):
            y = top + TILE + 4 + LINE * line
            draw.rectangle((left, y + 1, left + int(TILE * answer.probability), y + LINE - 3), fill='#c7ddf2')
            text = f'{100 * answer.probability:5.1f} %  {printable(answer.label)}'
            while draw.textlength(text, font) > TILE:
                text = f'{text[:-2]}…' if not text.endswith('…') else f'{text[:-3]}…'
            draw.text((left + 2, y), text, fill='black', font=font)
    with written_whole(output) as unfinished:
        picture.save(unfinished, format=Image.registered_extensions()[output.suffix.lower()])
