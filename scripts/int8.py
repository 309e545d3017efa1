"""Measure what int8 costs in accuracy: one network of each family, quantised after training with onnxruntime.

    python scripts/int8.py [--photos FOLDER --checkpoint CONVERTED]

Each network is trained on handwritten digits for a few minutes first, exported to ONNX and quantised statically, with
128 training images for calibration. The embedded network comes first. With --photos, a folder of ImageNet photos by
class, and --checkpoint, a folder that `mlfm-zoo convert` made, the authors' network is measured on the photos
too, calibrated on the same photos for lack of others. Prints a table.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Optional

import numpy as np
import onnxruntime
import timm
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from timm.data import create_dataset, create_transform, resolve_model_data_config
from torch.export import Dim

from digits import load_split, to_batch
from mlfm_zoo.data.imagenet100 import SYNSETS

# One network of each family, made small enough to be trained on a CPU in minutes by these arguments.
SMALL_CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(32, 48, 64, 96))
QUANTISED = [
    ('mlfm_resnet10', dict(channels=(32, 48, 64, 96))),
    ('mlfm_seresnet10', dict(channels=(32, 48, 64, 96))),
    ('mlfm_mobilenetv2_035', {}),
    ('mlfm_regnety_002', {}),
    ('mlfm_efficientnet_b0', dict(channel_multiplier=0.35)),
    ('mlfm_convnext_tiny_k3_par1_4', SMALL_CONVNEXT),
    ('mlfm_inception_next_tiny', SMALL_CONVNEXT),
]


def export_onnx(model: torch.nn.Module, file: Path, size: int) -> None:
    """Export with dynamic batch, height and width; input 'image', output 'logits'."""
    dynamic = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.onnx.export(
        model.eval(), (torch.randn(2, 3, size, size),), dynamo=True, dynamic_shapes=(dynamic,), input_names=['image'],
        output_names=['logits'], verbose=False)
    program.save(str(file))


def quantise(source: Path, target: Path, images: np.ndarray) -> None:
    """Quantise weights and activations of convolutions and linear layers to int8, calibrated on images (N, 3, H, W)."""

    class Reader(CalibrationDataReader):
        batches = iter(np.split(images, range(16, len(images), 16)))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {'image': batch}

    prepared = target.with_suffix('.prepared.onnx')
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=['Conv', 'Gemm', 'MatMul'])
    prepared.unlink()


def count_right(file: Path, images: np.ndarray, labels: np.ndarray) -> int:
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    batches = np.split(images, range(32, len(images), 32))
    logits = np.concatenate([session.run(None, {'image': batch})[0] for batch in batches])
    return int((logits.argmax(1) == labels).sum())


def measure(model: torch.nn.Module, name: str, calibration: np.ndarray, images: np.ndarray, labels: np.ndarray) -> str:
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, 'float.onnx'), Path(folder, 'int8.onnx')
        export_onnx(model, files[0], images.shape[-1])
        quantise(*files, calibration)
        right = [count_right(file, images, labels) for file in files]
        sizes = [file.stat().st_size / 2 ** 20 for file in files]
    drop = 100 * (right[0] - right[1]) / len(labels)
    return (f'| {name} | {right[0]} of {len(labels)} | {right[1]} of {len(labels)} | {drop:.1f} | {sizes[0]:.2f} | '
            f'{sizes[1]:.2f} |')


def train(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int = 12) -> torch.nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(images) // 64)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64)[:len(images) // 64]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model.train()(images[batch]), labels[batch]).backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


def main(photos: Optional[str], checkpoint: Optional[str]) -> None:
    print('| network | float32 | int8 | drop, points | float32, MiB | int8, MiB |')
    print('| --- | --: | --: | --: | --: | --: |')
    train_digits, test_digits = load_split()
    labels = test_digits.labels.numpy()
    embedded = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    sets = [to_batch(digits.images, embedded) for digits in (train_digits, test_digits)]
    calibration, images = sets[0][:128].numpy(), sets[1].numpy()
    print(measure(embedded, '`test_mlfm_resnet`, digits', calibration, images, labels), flush=True)
    if photos and checkpoint:
        model = timm.create_model(f'local-dir:{checkpoint}', pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(model))
        dataset = create_dataset(
            '', photos, search_split=False, class_map={name: i for i, name in enumerate(SYNSETS)}, transform=transform)
        pairs = [dataset[i] for i in range(len(dataset))]
        batch = torch.stack([image for image, _ in pairs]).numpy()
        name = f"`{model.pretrained_cfg['architecture']}`, authors' weights, {len(pairs)} photos"
        print(measure(model, name, batch, batch, np.array([label for _, label in pairs])), flush=True)
    for name, kwargs in QUANTISED:
        torch.manual_seed(0)
        model = train(timm.create_model(name, num_classes=10, **kwargs), sets[0], train_digits.labels)
        small = ', made small' if kwargs else ''
        print(measure(model, f'`{name}`{small}, digits', calibration, images, labels), flush=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--photos')
    parser.add_argument('--checkpoint')
    args = parser.parse_args()
    main(args.photos, args.checkpoint)
