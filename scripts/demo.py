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


def print_table(predictions: torch.Tensor, labels: torch.Tensor) -> None:
    print('digit   right   of')
    for digit in range(10):
        of_digit = labels == digit
        print(f'{digit:>5}   {(predictions[of_digit] == digit).sum():>5}   {of_digit.sum():>2}')


def draw_digits(model: torch.nn.Module, images, labels, batch, output: Path) -> None:
    """Draw a row per image: image, prediction, and the mean memory after each unit."""
    found = [answers.memories(model, image) for image in batch]
    columns = 1 + len(found[0][1])
    fig, axes = plt.subplots(
        len(images), columns, figsize=(1.5 * columns, 1.9 * len(images)), layout='constrained')
    for row, image, label, (probabilities, memories) in zip(axes, images, labels, found):
        confidence, digit = probabilities.max(0)
        row[0].imshow(image, interpolation='nearest')
        row[0].set_title(
            f'predicted {digit}, {100 * confidence:.0f} %\n(label {label})', fontsize=8,
            color='black' if digit == label else 'crimson')
        for axis, memory in zip(row[1:], memories):
            show_memory(axis, memory, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    fig.suptitle('Held-out digits, and the memory after each unit (mean of its channels)', fontsize=11)
    save(fig, output)


def show_memory(axis: plt.Axes, memory: answers.Memory, fontsize: int) -> None:
    axis.imshow(memory.mean, cmap='viridis', interpolation='nearest')
    axis.set_title(f'{memory.layer}\n{" x ".join(map(str, memory.shape))}', fontsize=fontsize)


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

    # large letters, as the first page of the site shows the picture at less than half its size
    columns = -(-len(written) // 2)
    fig = plt.figure(figsize=(10, 5), layout='constrained')
    fig.get_layout_engine().set(h_pad=0.1, w_pad=0.06)
    grid = fig.add_gridspec(2, 2 + columns)
    axes = [fig.add_subplot(grid[:, :2]), *(
        fig.add_subplot(grid[i // columns, 2 + i % columns]) for i in range(len(written)))]
    axes[0].imshow(pair.pixels(image))
    axes[0].set_title('\n'.join(lines), fontsize=17)
    for axis, memory in zip(axes[1:], written):
        show_memory(axis, memory, fontsize=15)
    for axis in axes:
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
    draw_digits(
        model, [test.images[i] for i in chosen], test.labels[chosen], images[chosen], args.output / 'digits.png')
    draw_photo(args.output / 'photograph.png')


if __name__ == '__main__':
    main()
