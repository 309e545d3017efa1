"""Make the pictures of the site's first page that no other script makes: what the memory holds, and the accuracies.

    python scripts/site_pictures.py [--output docs/pictures]

memory.png shows what each unit of MobileNetV2 x0.1 with the authors' ImageNet100 weights, downloaded where they are not
there yet, writes for scikit-learn's photograph china.jpg. accuracy.png sets the accuracies of the paper's table, none
of which is measured here, over multiply-adds that are counted.
"""

import argparse
from pathlib import Path

import matplotlib
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config

from demo import record_memory
from mlfm_zoo._files import written_whole
from mlfm_zoo.hub.manifest import paper_accuracies
from mlfm_zoo.workflow.cost import count_cost

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # after the choice of a backend that needs no screen

NETWORK = 'mlfm_mobilenetv2_010.paper_in100'
PHOTO = 'china.jpg'

FAMILIES = {
    'mlfm_resnet': 'ResNet', 'mlfm_seresnet': 'SE-ResNet', 'mlfm_mobilenetv2': 'MobileNetV2', 'mlfm_regnetx': 'RegNetX',
    'mlfm_regnety': 'RegNetY', 'mlfm_efficientnet': 'EfficientNet', 'mlfm_convnext': 'ConvNeXt',
    'mlfm_inception_next': 'InceptionNeXt',
}


def draw_memory(file: Path) -> None:
    """The photograph, and of each unit's memory the mean over its channels."""
    model = timm.create_model(NETWORK, pretrained=True).eval()
    config = resolve_model_data_config(model)
    transform = create_transform(**config)
    photo = Image.fromarray(load_sample_image(PHOTO))
    image = transform(photo)
    written = record_memory(model)
    with torch.inference_mode():
        model(image[None])
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    seen = (image * std + mean).clamp(0, 1).permute(1, 2, 0)

    rows = -(-(1 + len(written)) // 4)
    fig, axes = plt.subplots(rows, 4, figsize=(10, 2.75 * rows), layout='constrained')
    axes.flat[0].imshow(seen)
    axes.flat[0].set_title(f'the photograph\n3 x {image.shape[1]} x {image.shape[2]}', fontsize=10)
    for axis, (site, memory) in zip(axes.flat[1:], written):
        axis.imshow(memory[0].mean(0), cmap='viridis', interpolation='nearest')
        axis.set_title(f'{site}\n{" x ".join(map(str, memory.shape[1:]))}', fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    save(fig, file)


def draw_accuracies(file: Path) -> None:
    """Each network of the paper's table as an arrow: from its trunk to the network with memory."""
    fig, axis = plt.subplots(figsize=(9, 5), layout='constrained')
    colors = plt.get_cmap('tab10').colors
    for (prefix, family), color in zip(FAMILIES.items(), colors):
        names = [name for name in paper_accuracies() if name.startswith(prefix)]
        points = []
        for name in names:
            trunk, memory = paper_accuracies()[name]
            points.append((count_cost(name, memory=False).madds / 1e9, trunk, count_cost(name).madds / 1e9, memory))
        for x, y, x2, y2 in points:
            axis.annotate('', (x2, y2), (x, y), arrowprops=dict(arrowstyle='->', color=color, shrinkA=2, shrinkB=2))
        trunk_x, trunk_y, x, y = zip(*points)
        axis.scatter(trunk_x, trunk_y, s=28, facecolors='white', edgecolors=[color], zorder=3)
        axis.scatter(x, y, s=28, color=color, zorder=3, label=family)
    axis.scatter([], [], s=28, facecolors='white', edgecolors='gray', label='trunk alone')
    axis.set_xscale('log')
    axis.set_xlabel('multiply-adds of one image (G), counted')
    axis.set_ylabel('ImageNet100 top-1 (%), as the paper reports it')
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=9, ncols=2, loc='lower right')
    save(fig, file)


def save(fig: plt.Figure, file: Path) -> None:
    with written_whole(file) as unfinished:
        fig.savefig(unfinished, format='png', dpi=110, metadata=dict(Software=None))
    plt.close(fig)
    print(f'picture: {file}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--output', type=Path, default=Path(__file__).parents[1] / 'docs' / 'pictures', help='folder to write to')
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    draw_memory(args.output / 'memory.png')
    draw_accuracies(args.output / 'accuracy.png')


if __name__ == '__main__':
    main()
