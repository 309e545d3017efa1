"""Classify digits and a photograph with the packaged networks; draw their memory.

    python scripts/demo.py [--output FOLDER]

The handwritten digits are held-out ones. Prints the accuracy and the answers.
"""

import argparse
from pathlib import Path

import matplotlib
import timm
import torch
from PIL import Image

import mlfm_zoo
from digits import load_split, to_batch
from mlfm_zoo._files import written_whole
from mlfm_zoo.app import answers

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # after the choice of a backend that needs no screen

NETWORK = 'mlfm_mobilenetv2_010.imagenette'
PHOTO = Path(mlfm_zoo.__file__).parent / 'app' / 'photos' / 'cathedral.jpg'


def record_memory(model: torch.nn.Module):
    """List of (site, memory that its unit wrote), filled at each forward pass."""
    written = []
    for name, module in model.named_modules():
        if isinstance(module, mlfm_zoo.LowFrequencyMemoryUnit):
            site = name.removeprefix('memory.')
            module.register_forward_hook(
                lambda module, args, output, site=site: written.append((site, output[1])))
    return written


def print_table(predictions: torch.Tensor, labels: torch.Tensor) -> None:
    print('digit   right   of')
    for digit in range(10):
        of_digit = labels == digit
        print(f'{digit:>5}   {(predictions[of_digit] == digit).sum():>5}   {of_digit.sum():>2}')


def draw(images, labels, probabilities, written, output: Path) -> None:
    """Draw a row per image: image, prediction, and the mean memory after each unit."""
    fig, axes = plt.subplots(
        len(images), 1 + len(written), figsize=(1.5 * (1 + len(written)), 1.9 * len(images)),
        layout='constrained')
    for row, image in enumerate(images):
        confidence, digit = probabilities[row].max(0)
        axes[row, 0].imshow(image, interpolation='nearest')
        right = digit == labels[row]
        axes[row, 0].set_title(
            f'predicted {digit}, {100 * confidence:.0f} %\n(label {labels[row]})', fontsize=8,
            color='black' if right else 'crimson')
        for column, (site, memory) in enumerate(written, start=1):
            axes[row, column].imshow(memory[row].mean(0), cmap='viridis', interpolation='nearest')
            height, width = memory.shape[-2:]
            axes[row, column].set_title(f'{site}\n{memory.shape[1]} x {height} x {width}', fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    fig.suptitle('Held-out digits, and the memory after each unit (mean of its channels)', fontsize=11)
    save(fig, output)


def draw_photo(output: Path) -> None:
    """Draw the photograph, the answers with and without memory, and the mean memories."""
    pair = answers.load_pair(NETWORK)
    image = pair.prepare(Image.open(PHOTO))
    with_memory, written = answers.memories(pair.memory, image)
    lines = []
    for form, probabilities in (('with', with_memory), ('without', answers.answer(pair.trunk, image[None])[0])):
        probability, index = probabilities.max(0)
        lines.append(f'{form} memory: {pair.labels[index]}, {100 * probability:.0f} %')
    print(f'{PHOTO.name}: {"; ".join(lines)}')

    rows = -(-(1 + len(written)) // 4)
    fig, axes = plt.subplots(rows, 4, figsize=(10, 2.75 * rows), layout='constrained')
    axes.flat[0].imshow(pair.pixels(image))
    axes.flat[0].set_title('\n'.join(lines), fontsize=10)
    for axis, memory in zip(axes.flat[1:], written):
        axis.imshow(memory.mean, cmap='viridis', interpolation='nearest')
        axis.set_title(f'{memory.layer}\n{" x ".join(map(str, memory.shape))}', fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    save(fig, output)


def save(fig: plt.Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as unfinished:
        fig.savefig(unfinished, format='png', dpi=110, metadata=dict(Software=None))
    plt.close(fig)
    print(f'picture: {file}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=Path('demo'), help='folder for the pictures')
    args = parser.parse_args()

    model = timm.create_model('test_mlfm_resnet', pretrained=True).eval()
    _, test = load_split()
    images = to_batch(test.images, model)
    with torch.inference_mode():
        probabilities = model(images).softmax(1)
    predictions = probabilities.argmax(1)

    print_table(predictions, test.labels)
    correct = int((predictions == test.labels).sum())
    print(f'held-out accuracy: {100 * correct / len(test.labels):.2f} % ({correct} of {len(test.labels)})')

    # one image of each of five digits, and any that the model gets wrong
    wrong = (predictions != test.labels).nonzero().flatten().tolist()
    chosen = (wrong + [int((test.labels == digit).nonzero()[0]) for digit in (0, 2, 3, 5, 8)])[:5]
    written = record_memory(model)
    with torch.inference_mode():
        model(images[chosen])
    draw(
        [test.images[i] for i in chosen], test.labels[chosen], probabilities[chosen], written,
        args.output / 'digits.png')
    draw_photo(args.output / 'photograph.png')


if __name__ == '__main__':
    main()
