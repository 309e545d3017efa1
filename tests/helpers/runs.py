"""Output folders of timm's train.py, written without training."""

import csv

import timm
import torch
import yaml
from timm.utils import CheckpointSaver

TOP1 = [50.0, 70.0, 90.0, 90.0, 80.0]
MODEL = 'test_mlfm_resnet'


def write_run(folder, top1=TOP1, epochs=None, model=MODEL, weights=None, **args):
    """A run's folder, with the checkpoints that timm's own saver keeps."""
    folder.mkdir(parents=True)
    kwargs = args.get('model_kwargs', {})
    network = timm.create_model(model, num_classes=10, **kwargs)
    if weights is not None:
        weights(network)
    args = dict(dict(model=model, epochs=epochs or len(top1), model_kwargs=kwargs, seed=1, eval_metric='top1'), **args)
    (folder / 'args.yaml').write_text(yaml.safe_dump(args))
    saver = CheckpointSaver(
        network, torch.optim.SGD(network.parameters(), 0.1), checkpoint_dir=folder, recovery_dir=folder, max_history=2)
    with open(folder / 'summary.csv', 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'lr'])
        for epoch, value in enumerate(top1):
            writer.writerow([epoch, 1.0, 1.0, value, 0.1])
            saver.save_checkpoint(epoch, value)
    return folder
