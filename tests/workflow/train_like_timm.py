"""Training in the manner of timm's train.py, which is in no package: the same arguments, loop and files.

Only what the tests use is here. The tests run timm's own script instead where MLFM_ZOO_TIMM_SCRIPTS names its folder.
"""

import argparse
import contextlib
import os

import torch
import yaml
from timm import create_model, utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.layers import convert_sync_batchnorm
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs


def parse_args():
    parser = argparse.ArgumentParser()
    for name, kind, default in (
        ('data-dir', str, None), ('model', str, None), ('device', str, 'cpu'), ('opt', str, 'sgd'), ('lr', float, 0.1),
        ('momentum', float, 0.9), ('weight-decay', float, 2e-5), ('sched', str, 'cosine'), ('epochs', int, 300),
        ('warmup-epochs', int, 5), ('batch-size', int, 128), ('workers', int, 4), ('seed', int, 42),
        ('output', str, ''), ('experiment', str, ''), ('resume', str, ''), ('clip-grad', float, None),
        ('grad-accum-steps', int, 1), ('amp-dtype', str, 'float16'), ('model-ema-decay', float, 0.9998),
        ('smoothing', float, 0.1), ('img-size', int, None), ('num-classes', int, None),
        ('val-split', str, 'validation'),
    ):
        parser.add_argument(f'--{name}', type=kind, default=default)
    for name in ('no-aug', 'sync-bn', 'amp', 'channels-last', 'model-ema', 'no-prefetcher', 'grad-checkpointing'):
        parser.add_argument(f'--{name}', action='store_true')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs)
    return parser.parse_args()


def main():
    args = parse_args()
    text = yaml.safe_dump(vars(args))
    device = utils.init_distributed_device(args)
    utils.random_seed(args.seed, args.rank)
    model = create_model(args.model, num_classes=args.num_classes, **args.model_kwargs).to(device)
    model.set_grad_checkpointing(args.grad_checkpointing)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        model = convert_sync_batchnorm(model)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    start_epoch = resume_checkpoint(model, args.resume, optimizer) if args.resume else 0
    ema = utils.ModelEmaV3(model, decay=args.model_ema_decay) if args.model_ema else None
    config = resolve_data_config(vars(args), model=model)
    loaders = [
        create_loader(
            create_dataset('', args.data_dir, split=split, is_training=training), config['input_size'], args.batch_size,
            is_training=training, no_aug=args.no_aug, num_workers=args.workers, distributed=args.distributed,
            interpolation=config['interpolation'], mean=config['mean'], std=config['std'], crop_pct=config['crop_pct'],
            use_prefetcher=False, device=device, persistent_workers=args.workers > 0)
        for split, training in (('train', True), (args.val_split, False))]
    trained = torch.nn.parallel.DistributedDataParallel(model) if args.distributed else model
    saver, folder = None, None
    if utils.is_primary(args):
        folder = utils.get_outdir(args.output, args.experiment)
        saver = utils.CheckpointSaver(model, optimizer, args, ema, checkpoint_dir=folder, recovery_dir=folder)
        with open(os.path.join(folder, 'args.yaml'), 'w') as f:
            f.write(text)
    updates = -(-len(loaders[0]) // args.grad_accum_steps)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    scheduler.step(start_epoch)
    best = None
    for epoch in range(start_epoch, epochs):
        if args.distributed:
            loaders[0].sampler.set_epoch(epoch)
        loss = train_one_epoch(trained, model, loaders[0], optimizer, ema, args)
        if args.distributed:
            utils.distribute_bn(model, args.world_size, reduce=True)
        top1 = validate(ema.module if ema else model, loaders[1], args)
        if saver:
            utils.update_summary(
                epoch, {'loss': loss}, {'top1': top1}, os.path.join(folder, 'summary.csv'),
                lr=optimizer.param_groups[0]['lr'], write_header=best is None)
            best, _ = saver.save_checkpoint(epoch, metric=top1)
        scheduler.step(epoch + 1, top1)
    if args.distributed:
        torch.distributed.destroy_process_group()


def train_one_epoch(trained, model, loader, optimizer, ema, args):
    trained.train()
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    amp = torch.autocast('cpu', dtype=getattr(torch, args.amp_dtype)) if args.amp else contextlib.nullcontext()
    losses = utils.AverageMeter()
    for i, (images, targets) in enumerate(loader):
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with amp:
            loss = criterion(trained(images), targets)
        (loss / args.grad_accum_steps).backward()
        if (i + 1) % args.grad_accum_steps == 0 or i + 1 == len(loader):
            if args.clip_grad is not None:
                utils.dispatch_clip_grad(model.parameters(), args.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema.update(model)
        if args.distributed:
            loss = utils.reduce_tensor(loss.detach(), args.world_size)
        losses.update(loss.item(), len(images))
    return losses.avg


@torch.no_grad()
def validate(model, loader, args):
    model.eval()
    top1 = utils.AverageMeter()
    for images, targets in loader:
        right, = utils.accuracy(model(images), targets)
        if args.distributed:
            right = utils.reduce_tensor(right, args.world_size)
        top1.update(right.item(), len(images))
    return top1.avg


if __name__ == '__main__':
    main()
