"""The networks that tests run over, and what makes one fit for a test."""

from pathlib import Path

import torch

import mlfm_zoo

# of the embedded model
WEIGHTS = Path(mlfm_zoo.__file__).parent / 'weights' / 'test_mlfm_resnet.digits.safetensors'

# timm's name of each trunk that timm has
TRUNKS = {
    f'mlfm_{name}': name for name in (
        'resnet18', 'resnet34', 'resnet50', 'seresnet18', 'seresnet34', 'seresnet50',
        'mobilenetv2_035', 'mobilenetv2_050', 'mobilenetv2_075', 'mobilenetv2_100',
        'regnetx_002', 'regnetx_004', 'regnetx_006', 'regnetx_008',
        'regnety_002', 'regnety_004', 'regnety_006', 'regnety_008',
        'efficientnet_b0', 'efficientnet_b1', 'efficientnet_b2', 'efficientnet_b3', 'efficientnet_b4',
        'convnext_tiny', 'convnext_small', 'inception_next_tiny',
    )
}

# trunks that timm lacks
OWN = [
    'mlfm_resnet10', 'mlfm_seresnet10', 'mlfm_mobilenetv2_010', 'mlfm_convnext_tiny_k3', 'mlfm_convnext_tiny_k5',
    'mlfm_convnext_tiny_k3_par1_2', 'mlfm_convnext_tiny_k3_par1_4', 'mlfm_convnext_tiny_k3_par1_8',
]

ALL = sorted([*TRUNKS, *OWN])

# networks without memory
GSSDNET = sorted(
    f'gssdnet_{operators}_{width}' for operators in ('o2', 'o1', 'vanilla') for width in ('100', '075', '050'))

DCT = sorted([
    *(f'dct_resnet50_{c}' for c in ('24s', '24t', '24d', '48s', '48t', '64s', '64t', '192', '192_gate', 'ycbcr')),
    *(f'dct_mobilenetv2_100_{c}' for c in ('6s', '12s', '24s', '32s', '192', '192_gate')),
])

# one of each kind of network, made small by these arguments where the class allows it
SMALL = {
    'test_mlfm_resnet': {},
    'mlfm_resnet18': dict(channels=(16, 24, 32, 40)),
    'mlfm_seresnet50': dict(layers=(1, 2, 2, 1), channels=(8, 16, 24, 32)),
    'mlfm_mobilenetv2_010': {},
    'mlfm_efficientnet_b0': dict(channel_multiplier=0.25),
    'mlfm_regnety_002': {},
    'mlfm_convnext_tiny_k3_par1_4': dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)),
    'mlfm_inception_next_tiny': dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40)),
}

# and of networks without memory
SMALL_GSSDNET = {
    'gssdnet_o2_050': dict(channel_multiplier=0.3),
    'gssdnet_vanilla_050': dict(channel_multiplier=0.25),
}


@torch.no_grad()
def lived_in(model: torch.nn.Module) -> torch.nn.Module:
    """Gives a new model norms, scales and statistics that tell on its output."""
    for parameter in model.parameters():
        if parameter.ndim == 1:  # such as a norm that starts at 0, and layer scale, at 1e-6
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.train()
    for _ in range(2):
        model(1 + 2 * torch.randn(4, 3, 64, 64))
    return model.eval()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Compares two tensors, to a part of the largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@torch.inference_mode()
def assert_nothing_overwritten(model: torch.nn.Module) -> None:
    """Fails if a feature, memory or band that a memory unit is given changes during a pass."""
    handed = []

    def keep(unit, args):
        x, memory, bands = args
        handed.extend((tensor, tensor.clone()) for tensor in (memory, *bands, x))

    for unit in model.memory.units():
        unit.register_forward_pre_hook(keep)
    model(torch.randn(2, 3, 64, 96))
    assert handed and all(torch.equal(tensor, copy) for tensor, copy in handed)
