"""One small segmentation network of each kind, and data to train it on."""

import json

import torch

from helpers.shape_folders import LABELS, write_shapes
from mlfm_zoo.segmentation import create_model

RESNET = dict(channels=(8, 16, 24, 32), stem_width=8)

# name, encoder, arguments
KINDS = {
    'fcn': ('fcn8s', 'mlfm_resnet10', RESNET),
    'dilated': ('fcn8s', 'mlfm_resnet10', dict(RESNET, output_stride=8, aux=True, head='torchvision')),
    'unet': ('unet', None, dict(base_width=4, aux=True)),
    'unet decoder': ('unet', None, dict(base_width=4, memory_decoder=True, memory_update='cat')),
    'smp': ('unet', 'mlfm_resnet10', dict(RESNET, aux=True)),
    'attached': ('fcn16s', 'resnet10t', dict(RESNET, memory=True, memory_supplement='none')),
    'attached smp': (
        'deeplabv3plus', 'resnet10t', dict(RESNET, memory=True, decoder_channels=16, encoder_output_stride=8)),
}


def create(kind, num_classes=5, **kwargs):
    name, encoder, options = KINDS[kind]
    torch.manual_seed(0)
    return create_model(name, encoder, num_classes=num_classes, **dict(options, **kwargs))


def write_data(folder):
    """Write a data set that takes seconds to learn, and its labels.json; returns the folder."""
    write_shapes(folder)
    (folder / 'labels.json').write_text(json.dumps(LABELS))
    return folder
