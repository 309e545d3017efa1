"""Detectors small enough for tests, and what they are trained on."""

import torch

from helpers.networks import SMALL, SMALL_GSSDNET

# few regions, of which each goes through the heads
FEW = dict(
    box_batch_size_per_image=16, box_detections_per_img=6, rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=20)
TINY = dict(num_classes=4, fpn_channels=16, min_size=64, max_size=96, **FEW)
SMALL_DCT = dict(layers=(1, 1, 1, 1), channels=(8, 16, 24, 32))
NETWORKS = {
    **SMALL, **SMALL_GSSDNET,
    **{f'dct_resnet50_{chosen}': SMALL_DCT for chosen in ('24s', '48s', '64s', '192_gate')},
    'dct_resnet50_ycbcr': SMALL_DCT, 'dct_mobilenetv2_100_6s': {},
    'resnet18': {}, 'convnext_atto': {}, 'regnetx_002': {},
}


def samples(in_chans=3):
    """Two images of odd and different sizes, one of them with nothing in it."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(in_chans, *size, generator=generator) for size in ((67, 91), (101, 75))]
    masks = torch.zeros(2, 67, 91, dtype=torch.uint8)
    masks[0, 10:40, 5:50] = masks[1, 30:60, 40:80] = 1
    boxes = torch.tensor([[5., 10, 50, 40], [40, 30, 80, 60]])
    found = dict(boxes=boxes, labels=torch.tensor([1, 3]), masks=masks)
    nothing = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64),
                   masks=torch.zeros(0, 101, 75, dtype=torch.uint8))
    return images, [found, nothing]
