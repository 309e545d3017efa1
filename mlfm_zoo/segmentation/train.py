"""Train a segmentation network on a folder of images and masks, on one device or by torchrun on many.

A run's folder has settings.json, log.csv with a row an epoch, best/ and last/, networks that
`SegmentationNetwork.from_pretrained` reads, and state.pt, from which an interrupted run goes on. Augmentation and dropout
are drawn anew from seed and epoch at the start of each epoch, so that a run that was killed ends as one that was not.
"""

import copy
import csv
import dataclasses
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn as nn
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from .create import create_model
from .data import Labels, SegmentationDataset, eval_transform, load_labels, train_transform
from .evaluate import evaluate, segmentation_loss
from .metrics import as_row
from .network import SegmentationNetwork

__all__ = ['TrainSettings', 'load_run', 'train']

AMP = {'none': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class TrainSettings:
    """All that decides how a run goes.

    Attributes:
        data: Folder of images and masks, see `find_samples`.
        labels: Name or file of the labels, see `load_labels`.
        model: Name of the network, see `create_model`.
        encoder: Name of the backbone, or None.
        in_chans: Channels of the images.
        pretrained: Whether the backbone starts from its pretrained weights.
        model_kwargs: Arguments of the network.
        img_size: Height and width that images are resized to, or None for their own.
        crop_size: Height and width of the crops to train on.
        scale: Range of random scales.
        vflip: Probability of an upside-down flip.
        color_jitter: Range of random colours.
        epochs: Epochs.
        batch_size: Images a step, of one process.
        opt: Optimizer, by timm's name.
        lr: Learning rate, which falls to 0 as (1 - progress) ** 0.9.
        warmup: Steps in which it rises first.
        weight_decay: Weight decay, not of biases and norms.
        clip_grad: Largest norm of the gradient, 0 for any.
        aux_weight: Weight of the auxiliary loss.
        label_smoothing: Label smoothing.
        ema_decay: Decay of the average of the weights, which is what is evaluated then; 0 for none.
        amp: 'none', 'bfloat16' or 'float16'.
        channels_last: Whether to use that memory format.
        grad_checkpointing: Whether to trade time for memory in the backward pass.
        freeze_encoder: Whether all of the backbone but its memory stays as it is.
        train_split: Name of the split to train on.
        val_split: Name of the split to evaluate on after each epoch.
        seed: Seed.
    """
    data: str
    labels: str = 'camvid'
    model: str = 'fcn8s'
    encoder: Optional[str] = 'mlfm_resnet34'
    in_chans: int = 3
    pretrained: bool = False
    model_kwargs: Dict[str, Any] = field(default_factory=dict)
    img_size: Optional[Tuple[int, int]] = None
    crop_size: Tuple[int, int] = (360, 480)
    scale: Tuple[float, float] = (0.5, 2.0)
    vflip: float = 0.
    color_jitter: float = 0.3
    epochs: int = 100
    batch_size: int = 8
    opt: str = 'adamw'
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip_grad: float = 0.
    aux_weight: float = 0.4
    label_smoothing: float = 0.
    ema_decay: float = 0.
    amp: str = 'none'
    channels_last: bool = False
    grad_checkpointing: bool = False
    freeze_encoder: bool = False
    train_split: str = 'train'
    val_split: str = 'val'
    seed: int = 0


def train(
        settings: TrainSettings,
        output: Path,
        device: str = 'cpu',
        num_workers: int = 0,
        val_every: int = 1,
        progress: bool = False,
        log: Callable[[str], None] = print,
) -> Dict[str, float]:
    """Train a network, or go on with a run that was interrupted.

    Args:
        settings: How.
        output: Folder of the run.
        device: Device to train on; 'cuda' is that of the process where torchrun started it.
        num_workers: Processes that read images.
        val_every: Epochs between evaluations; the last is always evaluated.
        progress: Whether to print how far an epoch is.
        log: Takes a line for each epoch.

    Returns:
        The row of the log of the best epoch.

    Raises:
        ValueError: A setting is out of range, the data are unfit, or the folder has a run of other settings.
        RuntimeError: The loss is no number any more.
    """
    rank, world = _join_processes(device)
    if device == 'cuda':
        device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
    if settings.amp not in AMP:
        raise ValueError(f'amp is {settings.amp!r}, expected {", ".join(AMP)}.')
    labels = load_labels(settings.labels)
    train_set, val_set = _datasets(settings, labels)
    model = _build(settings, labels, device)
    if world > 1 and device.startswith('cuda'):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
    optimizer = create_optimizer_v2(model, settings.opt, settings.lr, settings.weight_decay)
    scaler = torch.amp.GradScaler(device.split(':')[0], enabled=settings.amp == 'float16')
    state: Dict[str, Any] = {'model': model, 'optimizer': optimizer, 'scaler': scaler}
    if ema is not None:
        state['ema'] = ema.module
    rows = _resume(settings, output, state, rank)
    if world > 1:
        torch.distributed.barrier()  # nothing is written before all have read
    network: nn.Module = model
    if world > 1:
        ids = [torch.device(device)] if device.startswith('cuda') else None
        network = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    for epoch in range(len(rows), settings.epochs):
        start = time.perf_counter()
        loss = _train_epoch(
            settings, network, model, ema, optimizer, scaler, train_set, epoch, rank, world, device, num_workers, progress)
        row = dict(epoch=epoch, loss=round(loss, 5), seconds=0.)
        kept: Any = model if ema is None else ema.module
        if (epoch + 1) % val_every == 0 or epoch + 1 == settings.epochs:
            scores = evaluate(
                kept, val_set, len(labels.names), boundaries=False, num_workers=num_workers, amp=AMP[settings.amp],
                progress=progress and rank == 0)
            row.update(as_row(scores, labels.names))
        row['seconds'] = round(time.perf_counter() - start, 1)
        rows.append(row)
        if rank == 0:
            _save(settings, labels, output, state, kept, rows)
            log(f'epoch {epoch}: loss {loss:.4f}' + (f', mIoU {row["miou"]:.2f} %' if 'miou' in row else ''))
    if world > 1:
        torch.distributed.barrier()
    return _best(rows)


def load_run(folder: Path, device: str = 'cpu') -> Tuple[SegmentationNetwork, Labels, Dict[str, Any]]:
    """Load a network of a run.

    Args:
        folder: best/ or last/ of a run.
        device: Device to load it to.

    Returns:
        The network in eval mode, its labels, and the settings of its run.

    Raises:
        ValueError: The folder is none of a run.
    """
    file = Path(folder) / 'run.json'
    try:
        run = json.loads(file.read_text(encoding='utf-8'))
        labels = Labels(**{
            k: tuple(tuple(x) if isinstance(x, list) else x for x in v) for k, v in run['labels'].items()})
        settings = run['settings']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{folder} has no network of a run ({error}), expected best or last of a folder that training wrote: check '
            'the path.') from None
    return SegmentationNetwork.from_pretrained(str(folder)).to(device).eval(), labels, settings


def _join_processes(device: str) -> Tuple[int, int]:
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world == 1:
        return 0, 1
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('nccl' if device == 'cuda' else 'gloo')
        if device == 'cuda':
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    return torch.distributed.get_rank(), world


def _datasets(settings: TrainSettings, labels: Labels) -> Tuple[SegmentationDataset, SegmentationDataset]:
    augment = train_transform(
        settings.crop_size, settings.in_chans, settings.img_size, settings.scale, settings.vflip, settings.color_jitter)
    plain = eval_transform(settings.in_chans, settings.img_size)
    return (
        SegmentationDataset(settings.data, settings.train_split, labels, settings.in_chans, augment),
        SegmentationDataset(settings.data, settings.val_split, labels, settings.in_chans, plain))


def _build(settings: TrainSettings, labels: Labels, device: str) -> SegmentationNetwork:
    torch.manual_seed(settings.seed)
    model = create_model(
        settings.model, settings.encoder, len(labels.names), settings.in_chans, settings.pretrained,
        **settings.model_kwargs)
    if settings.freeze_encoder:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not _is_frozen(name))
    if settings.grad_checkpointing:
        model.set_grad_checkpointing()
    return model.to(device, memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)


def _is_frozen(name: str) -> bool:
    """Whether a name is of a backbone, and not of its memory."""
    return name.startswith(('encoder.', 'network.encoder.')) and 'memory.' not in name


def _train_epoch(
        settings: TrainSettings,
        network: nn.Module,
        model: SegmentationNetwork,
        ema: Optional[ModelEmaV3],
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        dataset: SegmentationDataset,
        epoch: int,
        rank: int,
        world: int,
        device: str,
        num_workers: int,
        progress: bool,
) -> float:
    """Train for an epoch; returns the mean loss of this process."""
    network.train()
    if settings.freeze_encoder:  # a frozen norm keeps its statistics too
        for name, module in model.named_modules():
            if _is_frozen(f'{name}.') and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(dataset), generator=generator)
    order = order[:len(order) // world * world][rank::world] if len(order) >= world else order
    torch.manual_seed((settings.seed * 1_000_003 + epoch) * 1009 + rank)  # augmentation and dropout
    loader = DataLoader(
        dataset, settings.batch_size, sampler=order.tolist(), num_workers=num_workers,
        drop_last=len(order) >= settings.batch_size, pin_memory=device.startswith('cuda'))
    steps = settings.epochs * len(loader)
    amp = AMP[settings.amp]
    total = torch.zeros((), device=device)
    for i, (images, labels) in enumerate(loader):
        step = epoch * len(loader) + i
        lr = settings.lr * min((step + 1) / max(1, settings.warmup), 1) * (1 - step / steps) ** 0.9
        for group in optimizer.param_groups:
            group['lr'] = lr
        images = images.to(
            device, memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)
        with torch.autocast(device.split(':')[0], amp) if amp else nullcontext():
            output = network(images)
        output = tuple(o.float() for o in output) if isinstance(output, tuple) else output.float()
        loss = segmentation_loss(
            output, labels.to(device), settings.aux_weight, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if settings.clip_grad:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.update(model, step=step)
        total += loss.detach()
        if progress and rank == 0:
            print(f'\repoch {epoch}: step {i + 1} of {len(loader)}', end='', file=sys.stderr, flush=True)
    if progress and rank == 0:
        print(file=sys.stderr)
    mean = (total / max(1, len(loader))).item()
    if not math.isfinite(mean):
        raise RuntimeError(f'The loss of epoch {epoch} is {mean}: train at a lower rate than {settings.lr:g}.')
    return mean


def _resume(settings: TrainSettings, output: Path, state: Dict[str, Any], rank: int) -> List[Dict[str, Any]]:
    """Load what a run in this folder has reached; returns its log."""
    wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
    file = output / 'settings.json'
    if file.exists():
        found = json.loads(file.read_text(encoding='utf-8'))
        others = [name for name in wanted if found.get(name) != wanted[name]]
        if others:
            raise ValueError(
                f'{output} has a run with {others[0]} {found.get(others[0])!r} instead of {wanted[others[0]]!r}: name '
                'another folder, or take that run away.')
    elif rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        _write_text(file, json.dumps(wanted, indent=2))
    saved = output / 'state.pt'
    if not saved.exists():
        return []
    try:
        loaded = torch.load(saved, map_location='cpu', weights_only=True)
        for name, part in state.items():
            part.load_state_dict(loaded[name])
    except Exception as error:  # of any kind: the file may be damaged anywhere
        what = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f'{saved} cannot be resumed from ({what}): take the folder away and start again.') from None
    return loaded['rows']


def _save(
        settings: TrainSettings,
        labels: Labels,
        output: Path,
        state: Dict[str, Any],
        kept: SegmentationNetwork,
        rows: List[Dict[str, Any]],
) -> None:
    """Write what an epoch has reached; state.pt, which a run goes on from, last."""
    run = json.dumps({'settings': dataclasses.asdict(settings), 'labels': dataclasses.asdict(labels)}, indent=2)
    for name in ('last', 'best') if _best(rows) is rows[-1] else ('last',):
        folder = output / name
        unfinished = output / f'{name}.unfinished'
        kept.save_pretrained(unfinished)
        _write_text(unfinished / 'run.json', run)
        folder.mkdir(exist_ok=True)
        for file in unfinished.iterdir():
            file.replace(folder / file.name)
        unfinished.rmdir()
    columns = list(max(rows, key=len))
    unfinished = output / 'log.csv.unfinished'
    with open(unfinished, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(output / 'log.csv')
    unfinished = output / 'state.pt.unfinished'
    torch.save({**{name: copy.copy(part.state_dict()) for name, part in state.items()}, 'rows': rows}, unfinished)
    unfinished.replace(output / 'state.pt')


def _best(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    return max(rows, key=lambda row: row.get('miou', -1.))


def _write_text(file: Path, text: str) -> None:
    unfinished = file.with_name(file.name + '.unfinished')
    unfinished.write_text(text, encoding='utf-8')
    unfinished.replace(file)
