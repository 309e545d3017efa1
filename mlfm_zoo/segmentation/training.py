"""Train a segmentation network on images and masks, with Hugging Face accelerate.

A run's folder has log.csv with a row per epoch, best/ and last/ for `load_run`, and state.pth to resume from. The order
of images, augmentation and dropout depend on the seed and the epoch only, so an interrupted run ends with the same
numbers as an uninterrupted one.
"""

import csv
import io
import json
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple, Union

import torch
import torch.nn as nn
from huggingface_hub.utils import tqdm
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, RandomSampler

from .._extras import require_extra
from .._files import UNFINISHED, locked, read_pickle, written_whole
from ..data.folders import usable_device
from ..memory import LowFrequencyMemoryUnit, calibrate_memory
from .create import create_model
from .data import Labels, SegmentationDataset, eval_transform, load_labels, train_transform
from .evaluation import evaluate, segmentation_loss
from .metrics import as_row
from .network import SegmentationNetwork
from .settings import TrainSettings, read_json

__all__ = ['load_run', 'train']

CALIBRATION_BATCHES = 50


def train(
        settings: TrainSettings,
        output: Union[str, Path],
        device: str = 'cpu',
        num_workers: int = 0,
        progress: bool = False,
        log: Callable[[str], Any] = print,
) -> Dict[str, Any]:
    """Train a network, or resume a run that was interrupted.

    Args:
        settings: How to train.
        output: Folder of the run.
        device: Device to train on. With 'cuda', each process of torchrun takes one GPU.
        num_workers: Processes that read images.
        progress: Whether to show a progress bar.
        log: Takes a line for each epoch.

    Returns:
        The row of log.csv of the best epoch.

    Raises:
        ValueError: A setting is out of range, an image or mask cannot be used, or the folder has a run with other
            settings.
        RuntimeError: The loss is not finite, another process trains into the folder, or accelerate is not installed.

    Examples:
        >>> settings = TrainSettings(
        ...     'shapes', 'shapes/labels.json', model='fcn8s', encoder='test_mlfm_resnet', crop_size=(48, 64), epochs=1)
        >>> sorted(train(settings, 'run', log=lambda line: None))[:2]
        ['epoch', 'iou_disc']
    """
    accelerate = require_extra('accelerate', 'segmentation', 'Training')
    several = int(os.environ.get('WORLD_SIZE', 1)) > 1
    # accelerate places torchrun's processes only: it would not let device and precision change within a process
    accelerator = accelerate.Accelerator(cpu=several and torch.device(device).type == 'cpu', device_placement=several)
    place = accelerator.device if several else usable_device(device)
    output, is_main = Path(output), accelerator.is_main_process
    with locked(output) if is_main else nullcontext():
        labels = load_labels(settings.labels)
        record = json.loads(json.dumps({'settings': asdict(settings), 'labels': asdict(labels)}))
        state = _read_state(output / 'state.pth', record['settings'])

        torch.manual_seed(settings.seed)
        memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        model = create_model(
            settings.model, settings.encoder, len(labels.names), settings.in_chans, settings.pretrained,
            **settings.model_kwargs).to(place).to(memory_format=memory_format)
        train_set = SegmentationDataset(
            settings.data, settings.train_split, labels, train_transform(settings, model.mean, model.std),
            settings.in_chans)
        val_set = SegmentationDataset(
            settings.data, settings.val_split, labels, eval_transform(model.mean, model.std, settings.img_size),
            settings.in_chans)
        units = [module for module in model.modules() if isinstance(module, LowFrequencyMemoryUnit)]
        if not state and units and all(unit.is_identity() for unit in units):  # that of a warm start
            batches = DataLoader(train_set, settings.batch_size, num_workers=num_workers)
            calibrate_memory(model, islice(batches, CALIBRATION_BATCHES))
        if several and place.type == 'cuda':
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        frozen = _trunk(model) if settings.freeze_encoder else []
        for module in frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

        ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        kept: Any = model if ema is None else ema.module  # what is evaluated and saved
        optimizer = create_optimizer_v2(model, settings.opt, settings.lr, settings.weight_decay)
        amp_dtype = None if settings.amp == 'none' else getattr(torch, settings.amp)
        scaler = torch.amp.GradScaler(place.type, enabled=settings.amp == 'float16')
        order = torch.Generator()
        network, loader = accelerator.prepare(model, DataLoader(
            train_set, settings.batch_size, sampler=RandomSampler(train_set, generator=order), num_workers=num_workers,
            pin_memory=place.type == 'cuda',
            drop_last=len(train_set) >= settings.batch_size * accelerator.num_processes))
        rows: List[Dict[str, Any]] = state.get('rows', [])
        parts: Dict[str, Any] = {'model': model, 'optimizer': optimizer, 'scaler': scaler}
        if ema is not None:
            parts['ema'] = kept
        for name in parts if state else ():
            parts[name].load_state_dict(state[name])

        for epoch in range(len(rows), settings.epochs):
            start = time.perf_counter()
            network.train()
            for module in frozen:
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # keeps its statistics too
                    module.eval()
            seed = settings.seed * 1_000_003 + epoch
            order.manual_seed(seed)
            torch.manual_seed(1009 * seed + accelerator.process_index)  # augmentation and dropout
            total = torch.zeros((), device=place)
            bar = tqdm(loader, desc=f'epoch {epoch}', disable=not (progress and is_main))
            for step, (images, truth) in enumerate(bar, start=epoch * len(loader)):
                done = step / (settings.epochs * len(loader))
                for group in optimizer.param_groups:
                    group['lr'] = settings.lr * min((step + 1) / max(1, settings.warmup), 1) * (1 - done) ** 0.9
                with torch.autocast(place.type, amp_dtype, enabled=amp_dtype is not None):
                    logits = network(images.to(place, memory_format=memory_format))
                loss = segmentation_loss(
                    logits, truth.to(place), settings.aux_weight, label_smoothing=settings.label_smoothing)
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
            mean = accelerator.reduce(total, 'mean').item() / len(loader)
            if not math.isfinite(mean):
                raise RuntimeError(f'The loss of epoch {epoch} is {mean}: train at a lower rate than {settings.lr:g}.')

            row: Dict[str, Any] = dict(epoch=epoch, loss=round(mean, 5), seconds=0.)
            if (epoch + 1) % settings.val_every == 0 or epoch + 1 == settings.epochs:
                for buffer in kept.buffers() if several else ():  # those of norms differ between the processes
                    torch.distributed.broadcast(buffer, 0)
                scores = evaluate(
                    kept, val_set, len(labels.names), boundaries=False, num_workers=num_workers,
                    progress=progress and is_main)
                row.update(as_row(scores, labels.names))
            row['seconds'] = round(time.perf_counter() - start, 1)
            rows.append(row)
            if is_main:
                for name in ('last', 'best') if _best(rows) is row else ('last',):
                    _save_network(kept, output / name, record)
                with written_whole(output / 'log.csv') as file, open(file, 'w', newline='', encoding='utf-8') as f:
                    writer = csv.DictWriter(f, {column: None for row in rows for column in row})
                    writer.writeheader()
                    writer.writerows(rows)
                state = {name: part.state_dict() for name, part in parts.items()}
                buffer = io.BytesIO()  # of a full disk, Python's error is clear and torch's is not
                torch.save(dict(state, rows=rows, settings=record['settings']), buffer)
                with written_whole(output / 'state.pth') as file:
                    file.write_bytes(buffer.getbuffer())
                log(f'epoch {epoch}: loss {row["loss"]:.4f}' + (f', mIoU {row["miou"]:.2f} %' if 'miou' in row else ''))
        return _best(rows)


def load_run(folder: Union[str, Path], device: str = 'cpu') -> Tuple[SegmentationNetwork, Labels, TrainSettings]:
    """Load a network of a run.

    Args:
        folder: best/ or last/ of a run.
        device: Device to load it to.

    Returns:
        The network in eval mode, its labels, and the settings of its run.

    Raises:
        ValueError: The folder was not written by training, or its files are damaged or of different runs.

    Examples:
        >>> settings = TrainSettings(
        ...     'shapes', 'shapes/labels.json', model='fcn8s', encoder='test_mlfm_resnet', crop_size=(48, 64), epochs=1)
        >>> row = train(settings, 'loaded', log=lambda line: None)
        >>> model, labels, settings = load_run('loaded/best')
        >>> labels.names
        ('ground', 'disc', 'square')
    """
    file = Path(folder) / 'run.json'
    if not file.is_file():
        raise ValueError(f'{folder} has no network of a run: give the folder best or last that training wrote.')
    labels, settings = read_json(
        file, lambda run: (Labels.from_json(run['labels']), TrainSettings.from_json(run['settings'])))
    model = SegmentationNetwork.from_pretrained(str(folder)).to(device)
    if (model.num_classes, model.in_chans) != (len(labels.names), settings.in_chans):
        raise ValueError(
            f'{file} has {len(labels.names)} classes and {settings.in_chans} channels, and the network beside it '
            f'{model.num_classes} and {model.in_chans}, expected files of one run: copy the folder again.')
    return model, labels, settings


def _read_state(file: Path, settings: Dict[str, Any]) -> Dict[str, Any]:
    """Read the state of an interrupted run of these settings; empty if there is none."""
    state = read_pickle(file) if file.exists() else {}
    changed = [name for name, value in settings.items() if state and state['settings'].get(name) != value]
    if changed:
        raise ValueError(
            f'{file.parent} has a run with other settings ({", ".join(changed)}): name another folder, or remove it.')
    return state


def _trunk(model: nn.Module) -> List[nn.Module]:
    """The modules of the backbone, without its memory."""
    return [
        module for name, module in model.named_modules()
        if f'{name}.'.startswith(('encoder.', 'network.encoder.')) and 'memory.' not in f'{name}.']


def _save_network(network: SegmentationNetwork, folder: Path, record: Dict[str, Any]) -> None:
    """Write a network beside its folder, and then move it there file by file."""
    unfinished = folder.with_name(f'{UNFINISHED}{folder.name}')
    network.save_pretrained(unfinished)
    (unfinished / 'run.json').write_text(json.dumps(record, indent=2), encoding='utf-8')
    folder.mkdir(exist_ok=True)
    for file in unfinished.iterdir():
        file.replace(folder / file.name)
    unfinished.rmdir()


def _best(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    return max(rows, key=lambda row: row.get('miou', -1.))
