"""Train `test_mlfm_resnet` on scikit-learn's digits; write the packaged weights.

    python scripts/train_test_model.py [--output FILE] [--plain]

With --plain its trunk without the memory is trained in the same way, to compare with. Seed and split are fixed. It
takes about two minutes on 2 cores, prints its progress, and ends with the accuracy on the 360 held-out digits, which no
choice here was made on: the number of epochs was fixed beforehand.
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import mlfm_zoo
from digits import load_split, to_batch

OUTPUT = Path(mlfm_zoo.__file__).parent / 'weights' / 'test_mlfm_resnet.digits.safetensors'
EPOCHS = 40
BATCH_SIZE = 64
LEARNING_RATE = 4e-3


def shifted(images: torch.Tensor, generator: torch.Generator, reach: int = 4) -> torch.Tensor:
    """Each image moved by up to `reach` pixels, its border repeated."""
    padded = F.pad(images, (reach,) * 4, mode='replicate')
    size = images.shape[-1]
    offsets = torch.randint(2 * reach + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y:y + size, x:x + size] for image, (y, x) in zip(padded, offsets)])


def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.inference_mode():
        return (model.eval()(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, default=OUTPUT, help='file to write (default: the one in the package)')
    parser.add_argument('--plain', action='store_true', help='without the memory; needs --output')
    args = parser.parse_args()
    if args.plain and args.output == OUTPUT:
        parser.error('the weights in the package are those with the memory: name another file with --output')

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model('test_mlfm_resnet', memory=not args.plain)
    train, test = load_split()
    images, labels = to_batch(train.images, model), train.labels
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    steps = EPOCHS * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)

    for epoch in range(EPOCHS):
        model.train()
        total_loss = 0.
        order = torch.randperm(len(images), generator=generator)
        batches = order[:len(images) // BATCH_SIZE * BATCH_SIZE].split(BATCH_SIZE)
        for batch in batches:
            loss = F.cross_entropy(model(shifted(images[batch], generator)), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item()
        print(f'epoch {epoch + 1}/{EPOCHS}  loss {total_loss / len(batches):.3f}', flush=True)

    held_out = accuracy(model, to_batch(test.images, model), test.labels)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.output)
    parameters = sum(p.numel() for p in model.parameters())
    print(f'{args.output}: {parameters:,} parameters, {args.output.stat().st_size:,} bytes')
    print(f'held-out accuracy: {100 * held_out:.2f} % of {len(test.labels)}')


if __name__ == '__main__':
    main()
