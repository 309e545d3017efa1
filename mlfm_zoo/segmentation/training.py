"""Train a segmentation network on images and masks, with Hugging Face accelerate.

A run's folder has log.csv with a row per epoch, best/ and last/ for `load_run`, and state.pth to resume from. The order
of images, augmentation and dropout depend on the seed and the epoch only, so an interrupted run ends with the same
numbers as an uninterrupted one.
"""

import csv
import dataclasses
import json
import math
import os
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError
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

    Example:
        >>> settings = TrainSettings(
        ...     'shapes', 'shapes/labels.json', model='fcn8s', encoder='test_mlfm_resnet', crop_size=(48, 64), epochs=1)
        >>> sorted(train(settings, 'run', log=lambda line: None))[:2]
        ['epoch', 'iou_disc']
    """
    accelerator = _accelerator(device)
    output = Path(output)
    with locked(output) if accelerator.is_main_process else nullcontext():
        run = _Run(settings, output, accelerator, device, num_workers, progress)
        for epoch in range(len(run.rows), settings.epochs):
            start = time.perf_counter()
            row: Dict[str, Any] = dict(epoch=epoch, loss=round(run.train_epoch(epoch), 5), seconds=0.)
            if (epoch + 1) % settings.val_every == 0 or epoch + 1 == settings.epochs:
                row.update(run.evaluate())
            row['seconds'] = round(time.perf_counter() - start, 1)
            run.rows.append(row)
            if accelerator.is_main_process:
                run.save()
                log(f'epoch {epoch}: loss {row["loss"]:.4f}' + (f', mIoU {row["miou"]:.2f} %' if 'miou' in row else ''))
        return _best(run.rows)


def load_run(folder: Union[str, Path], device: str = 'cpu') -> Tuple[SegmentationNetwork, Labels, TrainSettings]:
    """Load a network of a run.

    Args:
        folder: best/ or last/ of a run.
        device: Device to load it to.

    Returns:
        The network in eval mode, its labels, and the settings of its run.

    Raises:
        ValueError: The folder was not written by training, or its files are damaged.

    Example:
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
    run = read_json(file)
    if not isinstance(run, dict) or not {'labels', 'settings'} <= run.keys():
        raise ValueError(f'{file} has no labels and settings of a run: give a folder that training wrote.')
    labels, settings = Labels.from_json(run['labels'], file), TrainSettings.from_json(run['settings'], file)
    model = SegmentationNetwork.from_pretrained(str(folder)).to(device)
    if model.num_classes not in (1, len(labels.names)) or model.in_chans != settings.in_chans:
        raise ValueError(
            f'{folder} has a network of {model.num_classes} classes and {model.in_chans} channels, expected the '
            f'{len(labels.names)} classes and {settings.in_chans} channels of its run.json: correct or remove it.')
    return model, labels, settings


class _Run:
    """A run: network, optimizer, data, and log so far. Arguments are as in `train`."""

    def __init__(
            self,
            settings: TrainSettings,
            output: Path,
            accelerator: Any,
            device: str,
            num_workers: int,
            progress: bool,
    ):
        self.settings, self.output, self.num_workers, self.accelerator = settings, output, num_workers, accelerator
        self.plain_settings: Dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
        self.device = accelerator.device if accelerator.num_processes > 1 else usable_device(device)
        self.progress = progress and accelerator.is_main_process
        self.memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.amp_dtype = None if settings.amp == 'none' else getattr(torch, settings.amp)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == 'float16')
        self.labels = load_labels(settings.labels)
        state = self._read_state()
        torch.manual_seed(settings.seed)
        self.model = self._create_model()
        mean, std = self.model.mean, self.model.std
        train_set = SegmentationDataset(
            settings.data, settings.train_split, self.labels,
            train_transform(settings.crop_size, mean, std, settings.img_size, settings.scale, settings.vflip,
                            settings.color_jitter), settings.in_chans)
        self.val_set = SegmentationDataset(
            settings.data, settings.val_split, self.labels, eval_transform(mean, std, settings.img_size),
            settings.in_chans)
        units = [m for m in self.model.modules() if isinstance(m, LowFrequencyMemoryUnit)]
        if state is None and units and all(unit.is_identity() for unit in units):  # that of a warm start
            loader = DataLoader(train_set, settings.batch_size, num_workers=num_workers)
            calibrate_memory(self.model, islice(loader, CALIBRATION_BATCHES))
        if accelerator.num_processes > 1 and self.device.type == 'cuda':
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        self.kept: Any = self.model if self.ema is None else self.ema.module  # what is evaluated and saved
        self.optimizer = create_optimizer_v2(self.model, settings.opt, settings.lr, settings.weight_decay)
        self.order = torch.Generator()
        self.network, self.loader = accelerator.prepare(self.model, DataLoader(
            train_set, settings.batch_size, sampler=RandomSampler(train_set, generator=self.order),
            num_workers=num_workers, pin_memory=self.device.type == 'cuda',
            drop_last=len(train_set) >= settings.batch_size * accelerator.num_processes))
        self.rows: List[Dict[str, Any]] = []
        if state is not None:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.rows = state['rows']

    def _read_state(self) -> Optional[Dict[str, Any]]:
        """Read the state of a run in the folder, if any, and compare its settings."""
        file = self.output / 'state.pth'
        if not file.exists():
            return None
        try:
            state: Dict[str, Any] = read_pickle(file)
            found = state['settings']
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(f'{file} is damaged: remove it to train from the beginning.') from error
        for name, value in self.plain_settings.items():
            if found.get(name) != value:
                raise ValueError(
                    f'{self.output} has a run with {name} {found.get(name)!r} instead of {value!r}: name another '
                    'folder, or remove that run.')
        return state

    def _parts(self) -> Dict[str, Any]:
        """The parts of a state besides the rows: everything that training changes."""
        parts = {'model': self.model, 'optimizer': self.optimizer, 'scaler': self.scaler}
        return parts if self.ema is None else {**parts, 'ema': self.ema.module}

    def _create_model(self) -> SegmentationNetwork:
        settings = self.settings
        model = create_model(
            settings.model, settings.encoder, len(self.labels.names), settings.in_chans, settings.pretrained,
            **settings.model_kwargs)
        if settings.freeze_encoder:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not _is_trunk(name))
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        return model.to(self.device).to(memory_format=self.memory_format)

    def train_epoch(self, epoch: int) -> float:
        """Train for an epoch; returns the mean loss."""
        settings = self.settings
        self.network.train()
        if settings.freeze_encoder:  # a frozen norm keeps its statistics too
            for name, module in self.model.named_modules():
                if _is_trunk(f'{name}.') and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        seed = settings.seed * 1_000_003 + epoch
        self.order.manual_seed(seed)
        torch.manual_seed(1009 * seed + self.accelerator.process_index)  # augmentation and dropout
        total = torch.zeros((), device=self.device)
        bar = tqdm(self.loader, desc=f'epoch {epoch}', disable=not self.progress)
        for step, (images, labels) in enumerate(bar, start=epoch * len(self.loader)):
            done = step / (settings.epochs * len(self.loader))
            for group in self.optimizer.param_groups:
                group['lr'] = settings.lr * min((step + 1) / max(1, settings.warmup), 1) * (1 - done) ** 0.9
            images = images.to(self.device, memory_format=self.memory_format)
            with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                output = self.network(images)
            loss = segmentation_loss(
                output, labels.to(self.device), settings.aux_weight, label_smoothing=settings.label_smoothing)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            if settings.clip_grad:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None:
                self.ema.update(self.model, step=step)
            total += loss.detach()
        mean = self.accelerator.reduce(total, 'mean').item() / len(self.loader)
        if not math.isfinite(mean):
            raise RuntimeError(f'The loss of epoch {epoch} is {mean}: train at a lower rate than {settings.lr:g}.')
        return mean

    def evaluate(self) -> Dict[str, float]:
        """Measure the network; returns the scores as columns of log.csv."""
        if self.accelerator.num_processes > 1:  # each process has its own statistics of norms since the last step
            for buffer in self.kept.buffers():
                torch.distributed.broadcast(buffer, 0)
        scores = evaluate(
            self.kept, self.val_set, len(self.labels.names), boundaries=False, num_workers=self.num_workers,
            progress=self.progress)
        return as_row(scores, self.labels.names)

    def save(self) -> None:
        """Save the run after an epoch, in one process; last the state, to resume from."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        try:
            for name in ('last', 'best') if _best(self.rows) is self.rows[-1] else ('last',):
                self._save_network(self.output / name)
            with written_whole(self.output / 'log.csv') as file, open(file, 'w', newline='', encoding='utf-8') as f:
                writer = csv.DictWriter(f, {name: None for row in self.rows for name in row})
                writer.writeheader()
                writer.writerows(self.rows)
            with written_whole(self.output / 'state.pth') as file, open(file, 'wb') as opened:
                torch.save(dict(state, rows=self.rows, settings=self.plain_settings), opened)
        except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these for a full disk
            raise OSError(
                f'{self.output} cannot be written: make room on the disk and give the command again.') from error

    def _save_network(self, folder: Path) -> None:
        """Write the network beside its folder, and then move it there file by file."""
        unfinished = folder.with_name(f'{UNFINISHED}{folder.name}')
        self.kept.save_pretrained(unfinished)
        run = {'settings': self.plain_settings, 'labels': dataclasses.asdict(self.labels)}
        (unfinished / 'run.json').write_text(json.dumps(run, indent=2), encoding='utf-8')
        folder.mkdir(exist_ok=True)
        for file in unfinished.iterdir():
            file.replace(folder / file.name)
        unfinished.rmdir()


def _accelerator(device: str) -> Any:
    """Join torchrun's processes, if any; only then does accelerate manage devices.

    Runs of a single process may differ in device and precision, which accelerate does not allow.
    """
    accelerate = require_extra('accelerate', 'segmentation', 'Training')
    several = int(os.environ.get('WORLD_SIZE', 1)) > 1
    return accelerate.Accelerator(cpu=several and torch.device(device).type == 'cpu', device_placement=several)


def _is_trunk(name: str) -> bool:
    """Whether a name is of a backbone, and not of its memory."""
    return name.startswith(('encoder.', 'network.encoder.')) and 'memory.' not in name


def _best(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    return max(rows, key=lambda row: row.get('miou', -1.))
