"""Train a segmentation network on a folder of images and masks, with Hugging Face accelerate.

A run's folder has log.csv with a row for each epoch, best/ and last/, which `load_run` reads, and state-N/, from which
accelerate resumes after N epochs. The order of images, augmentation and dropout depend on the seed and the epoch alone,
so that a run that was killed ends with the same numbers as one that was not.
"""

import csv
import dataclasses
import json
import math
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from huggingface_hub.utils import tqdm
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, RandomSampler

from .._extras import require_extra
from .._files import written_whole
from ..memory import LowFrequencyMemoryUnit, calibrate_memory
from .create import create_model
from .data import Labels, SegmentationDataset, eval_transform, load_labels, train_transform
from .evaluation import evaluate, segmentation_loss
from .metrics import as_row
from .network import SegmentationNetwork
from .settings import AMP, TrainSettings

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
        device: Device to train on. With 'cuda', each process that torchrun started takes a GPU of its own.
        num_workers: Processes that read images.
        progress: Whether to show a progress bar.
        log: Takes a line for each epoch.

    Returns:
        The row of log.csv of the best epoch.

    Raises:
        ValueError: A setting is out of range, an image or mask is unfit, or the folder has a run of other settings.
        RuntimeError: The loss is not finite, or accelerate is not installed.
    """
    run = _Run(settings, Path(output), device, num_workers, progress)
    for epoch in range(len(run.rows), settings.epochs):
        start = time.perf_counter()
        row: Dict[str, Any] = dict(epoch=epoch, loss=round(run.train_epoch(epoch), 5), seconds=0.)
        if (epoch + 1) % settings.val_every == 0 or epoch + 1 == settings.epochs:
            row.update(run.evaluate())
        row['seconds'] = round(time.perf_counter() - start, 1)
        run.rows.append(row)
        run.save()
        if run.accelerator.is_main_process:
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
        ValueError: The folder was not written by training.
    """
    file = Path(folder) / 'run.json'
    if not file.is_file():
        raise ValueError(f'{folder} has no network of a run: give the folder best or last that training wrote.')
    run = json.loads(file.read_text(encoding='utf-8'))
    model = SegmentationNetwork.from_pretrained(str(folder)).to(device)
    return model, Labels.from_json(run['labels']), TrainSettings(**run['settings'])


class _Run:
    """A run: its network, what trains it, and its log so far. See `train` for the arguments."""

    def __init__(self, settings: TrainSettings, output: Path, device: str, num_workers: int, progress: bool):
        self.settings = settings
        self.output = output
        self.num_workers = num_workers
        self.accelerator = _accelerator(device, AMP[settings.amp])
        self.progress = progress and self.accelerator.is_main_process
        self.memory_format = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.labels = load_labels(settings.labels)
        self._check_folder()
        train_set = SegmentationDataset(
            settings.data, settings.train_split, self.labels, settings.in_chans,
            train_transform(settings.crop_size, settings.in_chans, settings.img_size, settings.scale, settings.vflip,
                            settings.color_jitter))
        self.val_set = SegmentationDataset(
            settings.data, settings.val_split, self.labels, settings.in_chans,
            eval_transform(settings.in_chans, settings.img_size))
        states = sorted(output.glob('state-*'))
        self.model = self._create_model(None if states else train_set)
        self.kept = self.model  # the network that is evaluated and saved
        self.ema: Optional[ModelEmaV3] = None
        if settings.ema_decay:
            self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True)
            self.kept = self.accelerator.prepare_model(self.ema.module, evaluation_mode=True)
        self.order = torch.Generator()
        self.network, self.optimizer, self.loader = self.accelerator.prepare(
            self.model,
            create_optimizer_v2(self.model, settings.opt, settings.lr, settings.weight_decay),
            DataLoader(
                train_set, settings.batch_size, sampler=RandomSampler(train_set, generator=self.order),
                num_workers=num_workers, pin_memory=self.accelerator.device.type == 'cuda',
                drop_last=len(train_set) >= settings.batch_size * self.accelerator.num_processes))
        self.rows: List[Dict[str, Any]] = []
        if states:
            self.accelerator.load_state(states[-1])
            self.rows = json.loads((states[-1] / 'rows.json').read_text(encoding='utf-8'))

    def _check_folder(self) -> None:
        """Compare the settings with those of the run that is in the folder, if any."""
        file, wanted = self.output / 'last' / 'run.json', json.loads(json.dumps(dataclasses.asdict(self.settings)))
        found = json.loads(file.read_text(encoding='utf-8'))['settings'] if file.exists() else wanted
        for name, value in wanted.items():
            if found[name] != value:
                raise ValueError(
                    f'{self.output} has a run with {name} {found[name]!r} instead of {value!r}: name another folder, '
                    'or remove that run.')

    def _create_model(self, calibration: Optional[SegmentationDataset]) -> SegmentationNetwork:
        """Build the network; a memory at identity, that of a warm start, is calibrated on images if they are given."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        model = create_model(
            settings.model, settings.encoder, len(self.labels.names), settings.in_chans, settings.pretrained,
            **settings.model_kwargs)
        if settings.freeze_encoder:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not _is_trunk(name))
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        model.to(self.accelerator.device).to(memory_format=self.memory_format)
        units = [m for m in model.modules() if isinstance(m, LowFrequencyMemoryUnit)]
        if calibration is not None and units and all(unit.is_identity() for unit in units):
            loader = DataLoader(calibration, settings.batch_size, num_workers=self.num_workers)
            calibrate_memory(model, islice(loader, CALIBRATION_BATCHES))
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == 'cuda':
            return nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

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
        total = torch.zeros((), device=self.accelerator.device)
        bar = tqdm(self.loader, desc=f'epoch {epoch}', disable=not self.progress)
        for step, (images, labels) in enumerate(bar, start=epoch * len(self.loader)):
            done = step / (settings.epochs * len(self.loader))
            for group in self.optimizer.param_groups:
                group['lr'] = settings.lr * min((step + 1) / max(1, settings.warmup), 1) * (1 - done) ** 0.9
            output = self.network(images.to(memory_format=self.memory_format))
            loss = segmentation_loss(output, labels, settings.aux_weight, label_smoothing=settings.label_smoothing)
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            if settings.clip_grad:
                self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
            self.optimizer.step()
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
        """Write what an epoch has reached; the state, from which a run resumes, appears last and whole."""
        if self.accelerator.is_main_process:
            for name in ('last', 'best') if _best(self.rows) is self.rows[-1] else ('last',):
                self._save_network(self.output / name)
            with written_whole(self.output / 'log.csv') as file, open(file, 'w', newline='', encoding='utf-8') as f:
                writer = csv.DictWriter(f, {name: None for row in self.rows for name in row})
                writer.writeheader()
                writer.writerows(self.rows)
        unfinished = self.output / 'unfinished-state'
        self.accelerator.save_state(unfinished)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (unfinished / 'rows.json').write_text(json.dumps(self.rows), encoding='utf-8')
            state = unfinished.rename(self.output / f'state-{len(self.rows):06}')
            for older in {*self.output.glob('state-*')} - {state}:
                shutil.rmtree(older)

    def _save_network(self, folder: Path) -> None:
        """Write the network beside its folder, and move it there file by file when it is whole."""
        unfinished = folder.with_name(f'unfinished-{folder.name}')
        self.kept.save_pretrained(unfinished)
        run = {'settings': dataclasses.asdict(self.settings), 'labels': dataclasses.asdict(self.labels)}
        (unfinished / 'run.json').write_text(json.dumps(run, indent=2), encoding='utf-8')
        folder.mkdir(exist_ok=True)
        for file in unfinished.iterdir():
            file.replace(folder / file.name)
        unfinished.rmdir()


def _accelerator(device: str, mixed_precision: str) -> Any:
    """Join the processes that torchrun started, if any, and choose this one's device."""
    accelerate = require_extra('accelerate', 'segmentation', 'Training')
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run's device and precision
    kind = torch.device(device)
    if kind.index is not None:
        torch.cuda.set_device(kind)
    accelerator = accelerate.Accelerator(cpu=kind.type == 'cpu', mixed_precision=mixed_precision)
    if accelerator.device.type != kind.type:
        raise ValueError(f'device is {device!r}, expected one that this machine has, such as {accelerator.device}.')
    return accelerator


def _is_trunk(name: str) -> bool:
    """Whether a name is of a backbone, and not of its memory."""
    return name.startswith(('encoder.', 'network.encoder.')) and 'memory.' not in name


def _best(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    return max(rows, key=lambda row: row.get('miou', -1.))
