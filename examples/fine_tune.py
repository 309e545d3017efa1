"""Fine-tune a network with memory on your own images.

    python examples/fine_tune.py FOLDER [--model mlfm_mobilenetv2_100]

FOLDER holds train/<class> and val/<class>. The default starts from the authors' ImageNet100 weights. A warm start, such
as mlfm_resnet50.a1_in1k, is calibrated first, so that training starts from the network that its weights make. Then all
is trained with a cosine schedule, earlier layers at lower rates.
"""

import argparse

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, accuracy

import mlfm_zoo
from mlfm_zoo_cli.arguments import best_device


def fine_tune(
        folder: str,
        model_name: str = 'mlfm_mobilenetv2_100',
        in_chans: int = 3,
        epochs: int = 5,
        batch_size: int = 32,
        lr: float = 1e-3,
        layer_decay: float = 0.75,
        freeze_trunk: bool = False,
        device: str = 'cpu',
) -> tuple[torch.nn.Module, float]:
    """Fine-tune; return the model and its top-1 accuracy in percent on FOLDER/val."""
    datasets = {split: create_dataset('', folder, split=split, input_img_mode={1: 'L', 3: 'RGB', 4: 'RGBA'}[in_chans])
                for split in ('train', 'val')}
    num_classes = len(datasets['train'].reader.class_to_idx)
    model = timm.create_model(model_name, pretrained=True, num_classes=num_classes, in_chans=in_chans).to(device)
    config = resolve_model_data_config(model)
    if in_chans != 3:  # there are no statistics for other channels
        config.update(mean=(0.5,) * in_chans, std=(0.5,) * in_chans)
    loaders = {
        split: create_loader(
            dataset, config['input_size'], batch_size, is_training=split == 'train', no_aug=True, num_workers=2,
            interpolation=config['interpolation'], mean=config['mean'], std=config['std'], crop_pct=config['crop_pct'],
            use_prefetcher=False, device=torch.device(device))
        for split, dataset in datasets.items()}
    if not len(loaders['train']):
        raise SystemExit(f'{folder}/train has {len(datasets["train"])} images, fewer than a batch of {batch_size}: '
                         'give more images or a smaller --batch-size.')
    if model.memory.units()[0].is_identity():  # a warm start: the memory has learned nothing yet
        mlfm_zoo.calibrate_memory(model, loaders['train'])
    if freeze_trunk:  # all except memory and classifier
        model.requires_grad_(False)
        model.memory.requires_grad_(True)
        model.get_classifier().requires_grad_(True)
    optimizer = create_optimizer_v2(
        model, 'adamw', lr, weight_decay=0.05, layer_decay=None if freeze_trunk else layer_decay)
    # the optimizer alone does not scale the rates of the layers: timm's schedulers do
    scheduler = CosineLRScheduler(optimizer, t_initial=epochs * len(loaders['train']), t_in_epochs=False)
    step = 0
    for epoch in range(epochs):
        model.train()
        if freeze_trunk:  # a frozen norm keeps its statistics too
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.BatchNorm2d) and not name.startswith('memory.'):
                    module.eval()
        loss_meter = AverageMeter()
        for images, targets in loaders['train']:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            loss_meter.update(loss.item(), len(images))
        top1 = AverageMeter()
        model.eval()
        with torch.inference_mode():
            for images, targets in loaders['val']:
                top1.update(accuracy(model(images.to(device)), targets.to(device))[0].item(), len(images))
        print(f'epoch {epoch + 1} of {epochs}: loss {loss_meter.avg:.3f}, top-1 {top1.avg:.2f} %')
    return model, top1.avg


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder')
    parser.add_argument('--model', default='mlfm_mobilenetv2_100')
    parser.add_argument('--in-chans', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--freeze-trunk', action='store_true')
    parser.add_argument('--device', default=best_device())
    args = parser.parse_args()
    fine_tune(args.folder, args.model, args.in_chans, args.epochs, args.batch_size, args.lr,
              freeze_trunk=args.freeze_trunk, device=args.device)
