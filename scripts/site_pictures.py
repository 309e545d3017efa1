"""Make the first page's pictures of what the memory holds and of the accuracies.

    python scripts/site_pictures.py [--output docs/pictures]

memory.png is the photograph of scripts/demo.py. accuracy.png sets the accuracies of the authors' README, none of which
is measured here, over multiply-adds that are counted.
"""

import argparse
from pathlib import Path

import matplotlib

from demo import draw_photo, save
from mlfm_zoo.hub.manifest import paper_accuracies
from mlfm_zoo.workflow.cost import count_cost

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # after the choice of a backend that needs no screen

FAMILIES = {
    'mlfm_resnet': 'ResNet', 'mlfm_seresnet': 'SE-ResNet', 'mlfm_mobilenetv2': 'MobileNetV2', 'mlfm_regnetx': 'RegNetX',
    'mlfm_regnety': 'RegNetY', 'mlfm_efficientnet': 'EfficientNet', 'mlfm_convnext': 'ConvNeXt',
    'mlfm_inception_next': 'InceptionNeXt',
}


def draw_accuracies(file: Path) -> None:
    """Draw each network of the authors' table as an arrow from trunk to memory."""
    fig, axis = plt.subplots(figsize=(9, 5), layout='constrained')
    colors = plt.get_cmap('tab10').colors
    for (prefix, family), color in zip(FAMILIES.items(), colors):
        for name, (trunk, memory) in paper_accuracies().items():
            if name.startswith(prefix):
                start = count_cost(name, memory=False).madds / 1e9, trunk
                end = count_cost(name).madds / 1e9, memory
                axis.annotate('', end, start, arrowprops=dict(arrowstyle='->', color=color, shrinkA=2, shrinkB=2))
                axis.scatter(*start, s=28, facecolors='white', edgecolors=[color], zorder=3)
                axis.scatter(*end, s=28, color=color, zorder=3)
        axis.scatter([], [], s=28, color=color, label=family)
    axis.scatter([], [], s=28, facecolors='white', edgecolors='gray', label='trunk alone')
    axis.set_xscale('log')
    axis.set_xlabel('multiply-adds of one image (G), counted')
    axis.set_ylabel('ImageNet100 top-1 (%), as the authors report it')
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=9, ncols=2, loc='lower right')
    save(fig, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--output', type=Path, default=Path(__file__).parents[1] / 'docs' / 'pictures', help='folder to write to')
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    draw_photo(args.output / 'memory.png')
    draw_accuracies(args.output / 'accuracy.png')


if __name__ == '__main__':
    main()
