"""Train a segmentation network on a folder of images and masks, on one device or by torchrun on many.

A run's folder has settings.json, log.csv with a row an epoch, best/ and last/, networks that
`SegmentationNetwork.from_pretrained` reads, and state.pt, from which an interrupted run goes on. Augmentation and
dropout are drawn anew from seed and epoch at the start of each epoch, so that a run that was killed ends as one that
was not.
"""

import csv
import dataclasses
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
import torch.nn as nn
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from .._files import written_whole
from ..memory import LowFrequencyMemoryUnit, calibrate_memory
from .create import create_model
from .data import Labels, SegmentationDataset, eval_transform, load_labels, train_transform
from .evaluation import evaluate, segmentation_loss
from .metrics import as_row
from .network import SegmentationNetwork

__all__ = ['TrainSettings', 'load_run', 'train']

CALIBRATION_BATCHES = 50
AMP = {'none': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class TrainSettings:
    """All that decides how a run goes.

    Attributes:
        data: Folder of images and masks, see `find_samples`.
        labels: Labels of the masks: camvid, voc, ade20k, membrane, or a JSON file.
        model: Name of the network, see `create_model`.
        encoder: Name of the backbone, None for the classic U-Net.
        in_chans: Channels of the images.
        pretrained: Whether the backbone starts from its pretrained weights.
        model_kwargs: Arguments of the network.
        img_size: Height and width that images are resized to, their own if None.
        crop_size: Height and width of the crops to train on.
        scale: Range of random scales.
        vflip: Probability of an upside-down flip.
        color_jitter: Range of random brightness, contrast and saturation.
        epochs: Epochs.
        batch_size: Images a step, of one process.
        opt: Optimizer, by timm's name.
        lr: Learning rate, which falls to 0 as (1 - progress) ** 0.9.
        warmup: Steps in which it rises first.
        weight_decay: Weight decay, not of biases and norms.
        clip_grad: Largest norm of the gradient, 0 for any.
        aux_weight: Weight of the auxiliary loss.
        label_smoothing: Label smoothing.
        ema_decay: Decay of an average of the weights, which is what is evaluated and kept; 0 for none.
        amp: Autocast to bfloat16, to float16 or none.
        channels_last: Whether to use that memory format.
        grad_checkpointing: Whether to spend time to save memory in the backward pass.
        freeze_encoder: Whether all of the backbone but its memory stays as it is.
        train_split: Name of the split to train on.
        val_split: Name of the split to evaluate on.
        val_every: Epochs from one evaluation to the next; the last epoch is always evaluated.
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
    crop_size: Tuple[int, int] = (352, 480)
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
    val_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.amp not in AMP:
            raise ValueError(f'amp is {self.amp!r}, expected {" or ".join(AMP)}.')
        for name in ('epochs', 'batch_size', 'val_every', 'in_chans'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} is {getattr(self, name)}, expected 1 or more.')

    def datasets(self, labels: Labels) -> Tuple[SegmentationDataset, SegmentationDataset]:
        """The images to train on, augmented, and those to evaluate on."""
        augment = train_transform(
            self.crop_size, self.in_chans, self.img_size, self.scale, self.vflip, self.color_jitter)
        plain = eval_transform(self.in_chans, self.img_size)
        return (
            SegmentationDataset(self.data, self.train_split, labels, self.in_chans, augment),
            SegmentationDataset(self.data, self.val_split, labels, self.in_chans, plain))

    def create_model(self, num_classes: int, device: str) -> SegmentationNetwork:
        """The network as it is before training."""
        torch.manual_seed(self.seed)
        model = create_model(
            self.model, self.encoder, num_classes, self.in_chans, self.pretrained, **self.model_kwargs)
        if self.freeze_encoder:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(not _is_frozen(name))
        if self.grad_checkpointing:
            model.set_grad_checkpointing()
        return model.to(device).to(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def train(
        settings: TrainSettings,
        output: Union[str, Path],
        device: str = 'cpu',
        num_workers: int = 0,
        progress: bool = False,
        log: Callable[[str], Any] = print,
) -> Dict[str, Any]:
    """Train a network, or go on with a run that was interrupted.

    Args:
        settings: How.
        output: Folder of the run.
        device: Device to train on; 'cuda' is the process's own where torchrun started it.
        num_workers: Processes that read images.
        progress: Whether to print how far an epoch is.
        log: Takes a line for each epoch.

    Returns:
        The row of the log of the best epoch.

    Raises:
        ValueError: A setting is out of range, the data are unfit, or the folder has a run of other settings.
        RuntimeError: The loss is no number any more.
    """
    run = _Run(settings, Path(output), device, num_workers, progress)
    for epoch in range(len(run.rows), settings.epochs):
        start = time.perf_counter()
        row: Dict[str, Any] = dict(epoch=epoch, loss=round(run.train_epoch(epoch), 5), seconds=0.)
        if (epoch + 1) % settings.val_every == 0 or epoch + 1 == settings.epochs:
            row.update(run.evaluate())
        row['seconds'] = round(time.perf_counter() - start, 1)
        run.rows.append(row)
        if run.rank == 0:
            run.save()
            log(f'epoch {epoch}: loss {row["loss"]:.4f}' + (f', mIoU {row["miou"]:.2f} %' if 'miou' in row else ''))
    run.wait()
    return _best(run.rows)


def load_run(folder: Union[str, Path], device: str = 'cpu') -> Tuple[SegmentationNetwork, Labels, TrainSettings]:
    """Load a network of a run.

    Args:
        folder: best/ or last/ of a run.
        device: Device to load it to.

    Returns:
        The network in eval mode, its labels, and the settings of its run.

    Raises:
        ValueError: The folder is none of a run.
    """
    try:
        run = json.loads((Path(folder) / 'run.json').read_text(encoding='utf-8'))
        labels, settings = Labels.from_json(run['labels']), TrainSettings(**run['settings'])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'{folder} has no network of a run ({error}): give the folder best or last that training wrote.') from None
    return SegmentationNetwork.from_pretrained(str(folder)).to(device).eval(), labels, settings


class _Run:
    """A run: its network, what trains it, and what it has reached.

    Args:
        settings: How it is trained.
        output: Its folder.
        device: Device to train on.
        num_workers: Processes that read images.
        progress: Whether to print how far an epoch is.
    """

    def __init__(self, settings: TrainSettings, output: Path, device: str, num_workers: int, progress: bool):
        self.settings = settings
        self.output = output
        self.num_workers = num_workers
        self.rank, self.world = 0, int(os.environ.get('WORLD_SIZE', 1))
        if self.world > 1:
            device = self._join(device)
        self.device = torch.device(device)
        self.progress = progress and self.rank == 0
        self.labels = load_labels(settings.labels)
        self.train_set, self.val_set = settings.datasets(self.labels)
        if len(self.train_set) < self.world:
            raise ValueError(
                f'{len(self.train_set)} images cannot be shared by {self.world} processes: start fewer of them.')
        model = settings.create_model(len(self.labels.names), device)
        if not (self.output / 'state.pt').exists():
            self._calibrate(model)
        if self.world > 1 and self.device.type == 'cuda':
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = self.kept = model  # what is trained, and what is evaluated and kept
        self.ema: Optional[ModelEmaV3] = None
        if settings.ema_decay:
            self.ema = ModelEmaV3(model, decay=settings.ema_decay, use_warmup=True)
            self.kept = self.ema.module
        self.optimizer = create_optimizer_v2(model, settings.opt, settings.lr, settings.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == 'float16')
        self.rows: List[Dict[str, Any]] = self._resume()
        self.wait()  # nothing is written before all processes have read
        self.network: nn.Module = model
        if self.world > 1:
            ids = [self.device] if self.device.type == 'cuda' else None
            self.network = nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def _join(self, device: str) -> str:
        """Join the processes that torchrun started; returns this one's device."""
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('nccl' if device == 'cuda' else 'gloo')
        self.rank = torch.distributed.get_rank()
        if device != 'cuda':
            return device
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
        torch.cuda.set_device(device)
        return device

    def _calibrate(self, model: SegmentationNetwork) -> None:
        """Calibrate a memory at identity, that of a warm start, so that training starts from what the trunk makes."""
        units = [m for m in model.modules() if isinstance(m, LowFrequencyMemoryUnit)]
        if units and all(unit.is_identity() for unit in units):
            loader = DataLoader(self.train_set, self.settings.batch_size, num_workers=self.num_workers)
            calibrate_memory(model, islice(loader, CALIBRATION_BATCHES))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()

    def _parts(self) -> Dict[str, Any]:
        """What a run goes on from."""
        parts: Dict[str, Any] = {'model': self.model, 'optimizer': self.optimizer, 'scaler': self.scaler}
        return parts if self.ema is None else dict(parts, ema=self.kept)

    def _resume(self) -> List[Dict[str, Any]]:
        """Load what a run in this folder has reached; returns its log."""
        wanted = json.loads(json.dumps(dataclasses.asdict(self.settings)))
        file = self.output / 'settings.json'
        if file.exists():
            found = json.loads(file.read_text(encoding='utf-8'))
            others = [name for name in wanted if found.get(name) != wanted[name]]
            if others:
                raise ValueError(
                    f'{self.output} has a run with {others[0]} {found.get(others[0])!r} instead of '
                    f'{wanted[others[0]]!r}: name another folder, or take that run away.')
        elif self.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as unfinished:
                unfinished.write_text(json.dumps(wanted, indent=2), encoding='utf-8')
        saved = self.output / 'state.pt'
        if not saved.exists():
            return []
        try:
            state = torch.load(saved, map_location='cpu', weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            return state['rows']
        except Exception as error:  # of any kind: the file may be damaged anywhere
            what = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
            raise ValueError(
                f'{saved} cannot be resumed from ({what}): take the folder away and start again.') from None

    def train_epoch(self, epoch: int) -> float:
        """Train for an epoch; returns the mean loss of this process."""
        settings = self.settings
        self.network.train()
        if settings.freeze_encoder:  # a frozen norm keeps its statistics too
            for name, module in self.model.named_modules():
                if _is_frozen(f'{name}.') and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        seed = settings.seed * 1_000_003 + epoch
        order = torch.randperm(len(self.train_set), generator=torch.Generator().manual_seed(seed))
        order = order[:max(len(order) // self.world, 1) * self.world][self.rank::self.world]
        torch.manual_seed(1009 * seed + self.rank)  # augmentation and dropout
        loader = DataLoader(
            self.train_set, settings.batch_size, sampler=order.tolist(), num_workers=self.num_workers,
            drop_last=len(order) >= settings.batch_size, pin_memory=self.device.type == 'cuda')
        total = torch.zeros((), device=self.device)
        for i, (images, labels) in enumerate(loader):
            step, steps = epoch * len(loader) + i, settings.epochs * len(loader)
            for group in self.optimizer.param_groups:
                group['lr'] = settings.lr * min((step + 1) / max(1, settings.warmup), 1) * (1 - step / steps) ** 0.9
            images = images.to(self.device, non_blocking=True).to(memory_format=settings.memory_format)
            labels = labels.to(self.device, non_blocking=True)
            amp = AMP[settings.amp]
            with torch.autocast(self.device.type, amp, enabled=amp is not None):
                output = self.network(images)
            loss = segmentation_loss(
                output, labels, settings.aux_weight, label_smoothing=settings.label_smoothing)
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
            if self.progress:
                print(f'\repoch {epoch}: step {i + 1} of {len(loader)}', end='', file=sys.stderr, flush=True)
        if self.progress:
            print(file=sys.stderr)
        mean = total.item() / len(loader)
        if not math.isfinite(mean):
            raise RuntimeError(f'The loss of epoch {epoch} is {mean}: train at a lower rate than {settings.lr:g}.')
        return mean

    def evaluate(self) -> Dict[str, float]:
        """Scores on the images to evaluate on, as columns of the log."""
        if self.world > 1:  # norms have the statistics of their own process since the last step
            for buffer in self.kept.buffers():
                torch.distributed.broadcast(buffer, 0)
        scores = evaluate(
            self.kept, self.val_set, len(self.labels.names), boundaries=False, num_workers=self.num_workers,
            amp=AMP[self.settings.amp], progress=self.progress)
        return as_row(scores, self.labels.names)

    def save(self) -> None:
        """Write what an epoch has reached; state.pt, which a run goes on from, last."""
        run = json.dumps(
            {'settings': dataclasses.asdict(self.settings), 'labels': dataclasses.asdict(self.labels)}, indent=2)
        for name in ('last', 'best') if _best(self.rows) is self.rows[-1] else ('last',):
            folder, unfinished = self.output / name, self.output / f'{name}.unfinished'
            self.kept.save_pretrained(unfinished)
            (unfinished / 'run.json').write_text(run, encoding='utf-8')
            folder.mkdir(exist_ok=True)
            for file in unfinished.iterdir():
                file.replace(folder / file.name)
            unfinished.rmdir()
        with written_whole(self.output / 'log.csv') as file, open(file, 'w', newline='', encoding='utf-8') as f:
            columns = {name: None for row in self.rows for name in row}
            writer = csv.DictWriter(f, list(columns))
            writer.writeheader()
            writer.writerows(self.rows)
        with written_whole(self.output / 'state.pt') as file:
            torch.save({**{name: part.state_dict() for name, part in self._parts().items()}, 'rows': self.rows}, file)


def _is_frozen(name: str) -> bool:
    """Whether a name is of a backbone, and not of its memory."""
    return name.startswith(('encoder.', 'network.encoder.')) and 'memory.' not in name


def _best(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    return max(rows, key=lambda row: row.get('miou', -1.))
