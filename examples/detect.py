"""Train, evaluate and use a detector on images annotated in the form of COCO.

    python examples/detect.py train OUT --images IMAGES --annotations JSON [--val-images IMAGES --val-annotations JSON]
    python examples/detect.py evaluate OUT --images IMAGES --annotations JSON
    python examples/detect.py predict OUT FILE ... --pictures FOLDER

OUT holds args.json, from which the network is built again, log.csv, last.pt and best.safetensors. An interrupted
`train` resumes from last.pt when the same command is given again. Defaults are the 1x schedule of COCO, 90,000 steps of
16 images, for which `torchrun --nproc-per-node 8 examples/detect.py train ...` uses 8 GPUs with 2 images each.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.layers import convert_sync_batchnorm
from timm.utils import ParseKwargs, init_distributed_device
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from mlfm_zoo.data.images import open_image
from mlfm_zoo.detection import CocoImages, collate, create_model, draw_predictions, evaluate
from mlfm_zoo_cli.arguments import best_device, positive, whole

LOSSES = ('loss_classifier', 'loss_box_reg', 'loss_mask', 'loss_objectness', 'loss_rpn_box_reg')


def batches(num_images: int, args: argparse.Namespace, start: int, rank: int, world: int) -> list[list[int]]:
    """Indices of one process's images for each step, reshuffled on each pass; a resumed run sees those left."""
    size, order = args.batch_size, []
    for n in range(math.ceil(args.steps * size / num_images)):
        order += torch.randperm(num_images, generator=torch.Generator().manual_seed(args.seed + n)).tolist()
    return [order[step * size + rank:(step + 1) * size:world] for step in range(start, args.steps)]


def build(args: argparse.Namespace, num_classes: int, pretrained: bool) -> torch.nn.Module:
    """Build the detector, frozen as `--pretrained` asks even if weights come later."""
    defaults = dict(trainable_stages=3, freeze_norms=True) if args.pretrained else {}
    return create_model(
        args.detector, args.backbone, num_classes, pretrained=pretrained, in_chans=args.in_chans,
        backbone_kwargs=args.backbone_kwargs, min_size=args.min_size, max_size=args.max_size,
        **dict(defaults, **args.model_kwargs))


def open_images(args: argparse.Namespace, images: str, annotations: str, training: bool = False) -> CocoImages:
    flip = v2.RandomHorizontalFlip(0.5) if training and not args.no_flip else None
    return CocoImages(
        images, annotations, flip, masks=args.detector == 'mask_rcnn', in_chans=args.in_chans, keep_empty=not training)


def measure(model: torch.nn.Module, dataset: CocoImages, args: argparse.Namespace, rank=0, world=1) -> dict:
    part = Subset(dataset, range(rank, len(dataset), world))
    loader = DataLoader(part, args.eval_batch_size, num_workers=args.workers, collate_fn=collate)
    return evaluate(model, loader, dataset.coco)


def train(args: argparse.Namespace) -> None:
    """Train from the start, or from where an earlier call was cut off."""
    process = argparse.Namespace(device=args.device)
    device = init_distributed_device(process)
    rank, world = process.rank, process.world_size
    if args.batch_size % world:
        raise SystemExit(f'--batch-size is {args.batch_size}, expected a multiple of the {world} processes.')
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed + rank)
    dataset = open_images(args, args.images, args.annotations, training=True)
    val = open_images(args, args.val_images or args.images, args.val_annotations or args.annotations)

    last, start, best = output / 'last.pt', 0, -math.inf  # AP is -1 where there is nothing to find
    # a resumed run is built in the same way: what is frozen depends on the weights that it starts from
    model = build(args, dataset.num_classes, args.pretrained)
    said = {k: v for k, v in vars(args).items() if k not in ('function', 'output', 'workers', 'device')}
    said.update(num_classes=dataset.num_classes, names=dataset.names)
    if world > 1 and device.type == 'cuda':
        model = convert_sync_batchnorm(model)
    model.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, args.lr, momentum=0.9, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and device.type == 'cuda')
    if last.exists():
        state = torch.load(last, map_location='cpu', weights_only=True)
        if state['args'] != json.dumps(said, sort_keys=True):
            raise SystemExit(f'{last} is of a run with other arguments: repeat them, or give another folder.')
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        scaler.load_state_dict(state['scaler'])
        start, best = state['step'], state['best']
        print(f'resumes after step {start}', flush=True)
    elif rank == 0:
        (output / 'args.json').write_text(json.dumps(said, indent=2), encoding='utf-8')
        (output / 'log.csv').unlink(missing_ok=True)
    ddp = DistributedDataParallel(model, [device] if device.type == 'cuda' else None) if world > 1 else model

    loader = DataLoader(
        dataset, batch_sampler=batches(len(dataset), args, start, rank, world), num_workers=args.workers,
        collate_fn=collate)
    sums, since, steps = dict.fromkeys(LOSSES, 0.0), time.time(), 0
    model.train()
    for step, (images, targets) in enumerate(loader, start=start + 1):
        factor = min(1.0, step / max(1, args.warmup)) * 0.1 ** sum(step > m for m in args.milestones)
        for group in optimizer.param_groups:
            group['lr'] = args.lr * factor
        images = [image.to(device) for image in images]
        targets = [{k: v.to(device) for k, v in t.items() if torch.is_tensor(v)} for t in targets]
        with torch.autocast(device.type, enabled=args.amp):
            losses = ddp(images, targets)
            loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise SystemExit(f'The loss is {loss.item()} at step {step}: give a lower --lr or a longer --warmup.')
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, args.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        for name, value in losses.items():
            sums[name] += value.item()
        steps += 1
        if step % args.eval_every and step != args.steps:
            if rank == 0 and step % args.log_every == 0:
                print(f'step {step}/{args.steps}, loss {sum(sums.values()) / steps:.3f}, '
                      f'{(time.time() - since) / steps:.2f} s a step', flush=True)
            continue
        seconds = (time.time() - since) / steps
        scores = measure(model, val, args, rank, world)
        if rank == 0:
            row = dict(step=step, lr=args.lr * factor, seconds=round(seconds, 3))
            row.update({name: round(value / steps, 4) for name, value in sums.items()})
            row.update({f'{kind}_{name}': round(scores.get(kind, {}).get(name, float('nan')), 4)
                        for kind in ('box', 'mask') for name in ('AP', 'AP50', 'AP75')})
            with open(output / 'log.csv', 'a', newline='', encoding='utf-8') as file:
                writer = csv.DictWriter(file, row)
                if not file.tell():
                    writer.writeheader()
                writer.writerow(row)
            print(', '.join(f'{k} {v}' for k, v in row.items()), flush=True)
            main_score = scores.get('mask', scores['box'])['AP']
            if main_score > best:
                best = main_score
                weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
                save_file(weights, output / 'best.safetensors')
            state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), scaler=scaler.state_dict(),
                         step=step, best=best, args=json.dumps(said, sort_keys=True))
            torch.save(state, output / 'unfinished.pt')
            (output / 'unfinished.pt').replace(last)  # a run that is killed here can resume
        sums, since, steps = dict.fromkeys(LOSSES, 0.0), time.time(), 0
    if world > 1:
        distributed.destroy_process_group()


def load(args: argparse.Namespace) -> tuple[torch.nn.Module, argparse.Namespace]:
    """The best detector of a run, and the run's arguments."""
    folder = Path(args.output)
    said = json.loads((folder / 'args.json').read_text(encoding='utf-8'))
    said = argparse.Namespace(**dict(said, workers=args.workers))
    model = build(said, said.num_classes, pretrained=False)
    model.load_state_dict(load_file(folder / 'best.safetensors'))
    return model.to(args.device).eval(), said


def evaluate_run(args: argparse.Namespace) -> None:
    model, said = load(args)
    scores = measure(model, open_images(said, args.images, args.annotations), said)
    print(json.dumps(scores, indent=2))


def predict(args: argparse.Namespace) -> None:
    files = {Path(args.pictures, f'{Path(file).stem}.png'): Path(file) for file in args.files}
    if len(files) < len(args.files) or set(map(Path.resolve, files)) & set(map(Path.resolve, files.values())):
        raise SystemExit('A picture would replace another, or an image: give another --pictures, or two calls.')
    model, said = load(args)
    if args.min_size:
        model.transform.min_size, model.transform.max_size = (args.min_size,), max(said.max_size, 2 * args.min_size)
    names = {int(label): name for label, name in said.names.items()}
    for picture, file in files.items():
        image = v2.functional.pil_to_tensor(open_image(file, {1: 'L', 3: 'RGB'}[said.in_chans]))
        pixels = v2.functional.to_dtype(image, torch.float32, scale=True)
        with torch.inference_mode():
            prediction = model([pixels.to(args.device)])[0]
        draw_predictions(pixels, prediction, picture, names, args.min_score)
        print(picture, int((prediction['scores'] >= args.min_score).sum()), 'objects', flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, function):
        sub = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.set_defaults(function=function)
        sub.add_argument('output', help='folder of the run')
        sub.add_argument('--device', default=best_device())
        sub.add_argument('--workers', type=whole, default=4, help='processes that read images')
        return sub

    sub = command('train', train)
    sub.add_argument('--images', required=True)
    sub.add_argument('--annotations', required=True)
    sub.add_argument('--val-images', help='those of training if not given')
    sub.add_argument('--val-annotations', help='those of training if not given')
    sub.add_argument('--detector', default='mask_rcnn')
    sub.add_argument('--backbone', default='mlfm_resnet50')
    sub.add_argument('--pretrained', action='store_true', help='start the network from the weights of its name')
    sub.add_argument('--in-chans', type=int, default=3)
    sub.add_argument('--backbone-kwargs', nargs='*', default={}, action=ParseKwargs, help='of timm.create_model')
    sub.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='of the detector')
    sub.add_argument('--min-size', type=positive, default=800)
    sub.add_argument('--max-size', type=positive, default=1333)
    sub.add_argument('--steps', type=positive, default=90_000)
    sub.add_argument('--milestones', type=whole, nargs='*', default=[60_000, 80_000], help='where lr falls tenfold')
    sub.add_argument('--warmup', type=whole, default=1000)
    sub.add_argument('--batch-size', type=positive, default=16, help='images per step, of all processes together')
    sub.add_argument('--eval-batch-size', type=positive, default=1)
    sub.add_argument('--lr', type=float, default=0.02)
    sub.add_argument('--weight-decay', type=float, default=1e-4)
    sub.add_argument('--clip-grad', type=float, default=10.0)
    sub.add_argument('--no-flip', action='store_true', help='do not flip images in training')
    sub.add_argument('--amp', action='store_true')
    sub.add_argument(
        '--eval-every', type=positive, default=5000, help='steps between evaluations, each with a checkpoint')
    sub.add_argument('--log-every', type=positive, default=20)
    sub.add_argument('--seed', type=int, default=0)
    sub = command('evaluate', evaluate_run)
    sub.add_argument('--images', required=True)
    sub.add_argument('--annotations', required=True)
    sub = command('predict', predict)
    sub.add_argument('files', nargs='+')
    sub.add_argument('--min-size', type=positive, help='shorter side that images are resized to, if not as in training')
    sub.add_argument('--pictures', default='predictions', help='folder of the pictures')
    sub.add_argument('--min-score', type=float, default=0.5)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    try:
        args.function(args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        # what this package refuses, it refuses in one sentence
        message = str(error)
        if 'Traceback' in message:  # of a process that reads images
            message = message.strip().splitlines()[-1].split(': ', 1)[-1]
        raise SystemExit(f'error: {message}') from None


if __name__ == '__main__':
    main()
