"""Model cards, from the manifest and the network."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from huggingface_hub import EvalResult, ModelCardData

from ..hub.manifest import OF_TIMM, Checkpoint, paper_accuracies
from .cost import count_cost

__all__ = ['IMAGENET100', 'dataset_of', 'make_card']

README = "authors' README"  # the name of this source in the manifest

AUTHORS = ('Fuzhi Wu, Jiasong Wu, Youyong Kong, Chunfeng Yang, Guanyu Yang, Huazhong Shu, Guy Carrault and Lotfi '
           'Senhadji')

PAPER = '''@inproceedings{wu2024mlfm,
  title={Multiscale Low-Frequency Memory Network for Improved Feature
    Extraction in Convolutional Neural Networks},
  author={Wu, Fuzhi and Wu, Jiasong and Kong, Youyong and Yang, Chunfeng and
    Yang, Guanyu and Shu, Huazhong and Carrault, Guy and Senhadji, Lotfi},
  booktitle={Proceedings of the AAAI Conference on Artificial Intelligence},
  year={2024}
}'''

DCT_PAPER = '''@inproceedings{xu2020learning,
  title={Learning in the Frequency Domain},
  author={Xu, Kai and Qin, Minghai and Sun, Fei and Wang, Yuhao and
    Chen, Yen-Kuang and Ren, Fengbo},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and
    Pattern Recognition},
  year={2020}
}'''

GSSDNET_PAPER = '''@misc{gssdnet2023,
  title={Frequency and Scale Perspectives of Feature Extraction},
  year={2023},
  eprint={2302.12477},
  archivePrefix={arXiv}
}'''

KINDS = {
    'embedded': "Trained by this project; the weights come with the package `mlfm-zoo`.",
    'paper': "The authors' own weights (Wu et al.), converted name by name; the conversion changes no value.",
    'trained': 'Trained with `mlfm-zoo`, independently of the authors of the paper.',
    'warm_start': 'The trunk has weights that were trained without memory, and the memory changes nothing yet: a start '
                  'for fine-tuning, not a trained memory.',
    'initialisation': "timm's weights for RGB images; the layers that read the coefficients keep their first input "
                      'channels. A start for training, not a classifier.',
}

# What a network is, its tags and its paper, by a part of its name.
SYSTEMS = {
    'mlfm_': ('A convolutional network with a multiscale low-frequency memory (MLFM) beside it',
              ('mlfm', 'low-frequency-memory'), PAPER),
    'gssdnet_vanilla': ('VanillaNet, the baseline of GSSDNet, with learned depthwise convolutions',
                        ('gssdnet',), GSSDNET_PAPER),
    'gssdnet_': ('GSSDNet, a convolutional network whose depthwise convolutions are fixed Gaussians and their '
                 'derivatives', ('gssdnet',), GSSDNET_PAPER),
    'dct_': ('A convolutional network that reads the DCT coefficients of the image', ('dct',), DCT_PAPER),
}


class Dataset(NamedTuple):
    """A dataset: its id on the Hub, its name and its number of classes."""
    id: str
    name: str
    num_classes: int


DIGITS = Dataset('digits', "scikit-learn's handwritten digits", 10)
IMAGENET100 = Dataset('imagenet100', 'ImageNet100 (ambityga/imagenet100)', 100)
IMAGENET_1K = Dataset('imagenet-1k', 'ImageNet-1k', 1000)
IMAGENETTE = Dataset('frgfm/imagenette', 'Imagenette', 10)

# By the last part of a tag, or of train.py's argument `dataset`.
DATASETS = {
    'digits': DIGITS, 'in100': IMAGENET100, 'imagenet100': IMAGENET100, 'in1k': IMAGENET_1K, 'imagenet-1k': IMAGENET_1K,
    'imagenette': IMAGENETTE,
}


def dataset_of(tag: str, num_classes: int, training_args: Optional[Dict[str, Any]] = None) -> Optional[Dataset]:
    """Find the data that weights were trained on.

    Args:
        tag: Tag of the weights, such as 'in100'.
        num_classes: Number of classes of the weights.
        training_args: Arguments of the training run, if they are known; its dataset takes precedence over the tag.

    Returns:
        The data; None if it is unknown.

    Examples:
        >>> dataset_of('in100', num_classes=100).name
        'ImageNet100 (ambityga/imagenet100)'
    """
    recorded = str((training_args or {}).get('dataset') or '')
    dataset = DATASETS.get(recorded.split('/')[-1].lower() if recorded else tag.split('_')[-1])
    return dataset if dataset is not None and dataset.num_classes == num_classes else None


def make_card(
        checkpoint: Checkpoint,
        model_args: Optional[Dict[str, Any]] = None,
        training_args: Optional[Dict[str, Any]] = None,
) -> str:
    """Make the model card of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        model_args: Arguments that build its network, beside the registered ones.
        training_args: Arguments of the training run, if they are known.

    Returns:
        Markdown with metadata at the top, as the Hub expects in a README.md.

    Examples:
        >>> from mlfm_zoo.hub.loading import find_checkpoint
        >>> '# test_mlfm_resnet.digits' in make_card(find_checkpoint('test_mlfm_resnet', 'digits'))
        True
    """
    dataset = dataset_of(checkpoint.tag, checkpoint.num_classes, training_args)
    what, tags, paper = next(system for part, system in SYSTEMS.items() if part in checkpoint.model)
    options = dict(model_args or {}, num_classes=checkpoint.num_classes)
    if not checkpoint.memory:
        what += ', here the baseline without it'
        options['memory'] = False
    cost = count_cost(checkpoint.model, checkpoint.input_size, **options)
    name = f'hf-hub:{checkpoint.repo}' if checkpoint.repo and checkpoint.kind not in OF_TIMM else checkpoint.name
    size = ' x '.join(map(str, cost.input_size[1:]))
    sections = [
        f'---\n{_metadata(checkpoint, dataset, tags).to_yaml()}\n---',
        f'# {checkpoint.title}',
        f'{what}, as a [timm](https://github.com/huggingface/pytorch-image-models) model. {KINDS[checkpoint.kind]}',
        '## Model details',
        '\n'.join([
            f'- Network: `{checkpoint.model}`, registered by the package `mlfm-zoo`',
            f'- Weights: {checkpoint.origin}',
            f'- License: {checkpoint.license}',
            f'- Parameters: {cost.params / 1e6:.2f} M',
            f'- Multiply-adds: {cost.madds / 1e9:.3f} G at {size}',
            f'- Activations: {cost.activations / 1e6:.2f} M at {size}',
            f'- Image size: {size}, {cost.input_size[0]} channels',
            f'- Classes: {checkpoint.num_classes}',
        ]),
        '## Usage',
        _usage(name, checkpoint),
        '## How it was trained',
        _training(checkpoint, training_args),
        '## Reported against measured',
        _figures(checkpoint, dataset),
        '## Limits',
        _limits(checkpoint, dataset),
        '## Citation',
        f'```bibtex\n{paper}\n```',
    ]
    return '\n\n'.join(sections) + '\n'


def _metadata(checkpoint: Checkpoint, dataset: Optional[Dataset], tags: Tuple[str, ...]) -> ModelCardData:
    results = [
        EvalResult(
            task_type='image-classification', dataset_type=data.id, dataset_name=data.name, metric_type='accuracy',
            metric_name=metric, metric_value=value)
        for metric, data, value in measured_figures(checkpoint, dataset)
    ]
    return ModelCardData(
        license=checkpoint.license,
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *tags],
        datasets=[dataset.id if dataset else 'other'],
        model_name=checkpoint.name,
        eval_results=results or None,
    )


def measured_figures(checkpoint: Checkpoint, dataset: Optional[Dataset]) -> List[Tuple[str, Dataset, float]]:
    """Split a checkpoint's measured accuracies into metric, data and percent.

    Args:
        checkpoint: The checkpoint. The figure 'top-1 of 50 photos' was measured on 50 photos, and 'top-1' on the
            validation images of the data that the weights were trained on.
        dataset: The data that the weights were trained on, None if unknown.

    Returns:
        The figures.
    """
    figures = []
    for name, value in checkpoint.measured.items():
        metric, _, images = name.partition(' of ')
        own = Dataset('other', images or 'unknown data', checkpoint.num_classes)
        figures.append((metric, own if images or dataset is None else dataset, value))
    return figures


def _usage(name: str, checkpoint: Checkpoint) -> str:
    if checkpoint.kind == 'initialisation':  # no classifier to show
        return f"""Importing `mlfm_zoo` registers the network with timm. To train it on ten classes, start from:

```python
import mlfm_zoo
import timm

model = timm.create_model(
    '{name}',
    pretrained=True, num_classes=10)
```"""
    pretrained = 'pretrained=True' if checkpoint.memory else 'pretrained=True, memory=False'
    imports = 'import mlfm_zoo\nimport timm\nimport torch'
    return f"""Importing `mlfm_zoo` registers the network with timm. For classification:

```python
{imports}
from PIL import Image

model = timm.create_model(
    '{name}', {pretrained})
model.eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config)
image = Image.new('RGB', (256, 256))  # your image
with torch.inference_mode():
    probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)
top = probabilities.topk(min(5, model.num_classes))
```

Features of each resolution, for detection or segmentation:

```python
{imports}

model = timm.create_model(
    '{name}',
    {pretrained}, features_only=True)
model.eval()
with torch.inference_mode():
    features = model(torch.randn(1, 3, 224, 224))
shapes = [tuple(feature.shape) for feature in features]
```

An embedding, pooled and without the classifier:

```python
{imports}

model = timm.create_model(
    '{name}',
    {pretrained}, num_classes=0)
model.eval()
with torch.inference_mode():
    embedding = model(torch.randn(1, 3, 224, 224))
```"""


def _training(checkpoint: Checkpoint, training_args: Optional[Dict[str, Any]]) -> str:
    origin = checkpoint.origin
    lines = [f'Trained{origin.removeprefix("trained")}.' if origin.startswith('trained') else f'Source: {origin}.']
    if checkpoint.source_repo:
        authors = f', by the authors of the paper: {AUTHORS}' if checkpoint.kind == 'paper' else ''
        lines.append(
            f'Released in [{checkpoint.source_repo}](https://{checkpoint.source_repo}), commit '
            f'`{checkpoint.source_commit}`, as `{checkpoint.source_path}` (git blob `{checkpoint.source_blob}`)'
            f'{authors}.')
    if training_args:
        settings = ('epochs', 'opt', 'lr', 'sched', 'weight_decay', 'batch_size', 'img_size', 'aa', 'mixup', 'seed')
        known = [f'{key} {training_args[key]}' for key in settings if training_args.get(key) not in (None, '')]
        lines.append(f'Settings: {", ".join(known)}. All arguments are in `args.yaml`.')
    return '\n'.join(lines)


def _figures(checkpoint: Checkpoint, dataset: Optional[Dataset]) -> str:
    rows = []
    paper = paper_accuracies().get(checkpoint.model)
    if paper is not None and checkpoint.kind in ('trained', 'paper'):
        rows += [f"| top-1 on ImageNet100, {what} | {value:.2f} % | the authors' README, not evaluated here |"
                 for what, value in (('with memory', paper.memory), ('without', paper.trunk))]
    rows += [f'| {name} | {value:.2f} % | the authors, not evaluated here |'
             for name, value in checkpoint.reported.items() if name != README]
    rows += [f'| {metric} on {data.name} | {value:.2f} % | measured: `{checkpoint.command}` |'
             for metric, data, value in measured_figures(checkpoint, dataset)]
    if not rows:
        return 'No figures of these weights are reported, and none were measured.'
    table = '\n'.join(['| figure | value | |', '| --- | --: | --- |', *rows])
    if checkpoint.kind == 'paper' and not checkpoint.measured:
        table += '\n\nThis project has not evaluated these weights: all figures are the authors\' own.'
    return table


def _limits(checkpoint: Checkpoint, dataset: Optional[Dataset]) -> str:
    is_mlfm = 'mlfm_' in checkpoint.model
    lines = ['- Images need at least 32 pixels a side.'] if is_mlfm else []
    if dataset == DIGITS:
        lines.append('- It knows 8 x 8 handwritten digits, enlarged, and nothing else.')
    elif dataset == IMAGENETTE:
        lines.append('- It knows ten classes of photographs, and answers with one of them on any image. It is one run.')
    elif checkpoint.kind == 'warm_start':
        lines.append('- The memory has learned nothing yet: in eval mode the network returns what its trunk returns.')
    elif checkpoint.kind == 'initialisation':
        lines.append('- It has not been trained on DCT coefficients: its outputs mean nothing until it is.')
    elif dataset == IMAGENET100 and is_mlfm:
        lines.append(
            '- ImageNet100 has 100 classes and 5,000 validation images: they cannot distinguish accuracies of single '
            'runs that differ by less than about 1.3 to 1.9 points.')
        lines.append('- It is not the ImageNet-100 of Contrastive Multiview Coding, with which it shares 8 classes.')
    else:
        lines.append('- It distinguishes the classes that it was trained on, and nothing else.')
    return '\n'.join(lines)
