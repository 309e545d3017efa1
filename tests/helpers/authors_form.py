"""Checkpoints in the form of the authors', made up from their names and shapes."""

import torch


def conv(name, out_chs, in_chs, kernel=1, bias=False):
    # of a size that keeps outputs near 1: in a network of wild weights rounding would grow
    weights = {f'{name}.weight': torch.randn(out_chs, in_chs, kernel, kernel) / (in_chs * kernel ** 2) ** 0.5}
    return weights | ({f'{name}.bias': torch.randn(out_chs)} if bias else {})


def norm(name, chs):
    return {
        f'{name}.weight': torch.rand(chs), f'{name}.bias': torch.randn(chs), f'{name}.running_mean': torch.randn(chs),
        f'{name}.running_var': 0.5 + torch.rand(chs), f'{name}.num_batches_tracked': torch.tensor(7)}


def unit(name, chs, memory_chs, supplement=True):
    """A memory unit as the authors' code stores it."""
    weights = conv(f'{name}.convinput', chs, memory_chs, bias=True) | norm(f'{name}.bninput', chs)
    if supplement:
        weights |= conv(f'{name}.convsupplement', chs, 3, 3, bias=True) | norm(f'{name}.bnsupplement', chs)
    return weights | norm(f'{name}.bnx', chs)


def divisible(value, divisor):
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def mobilenetv2(width=1.0, update='cat', num_classes=100):
    """State dict of the authors' MobileNetV2; update None for their plain network."""
    divisor = 4 if width == 0.1 else 8
    chs = stem = divisible(32 * width, divisor)
    name = 'featuresconv' if update else 'features.0'
    weights = conv(f'{name}.0', stem, 3, 3) | norm(f'{name}.1', stem)
    memory_chs, block = 3, 0
    if update:
        weights |= unit('wavelet_conv', stem, 3)
        memory_chs = 2 * stem if update == 'cat' else stem
    for group, (expand, base, depth) in enumerate(
            [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]):
        out_chs = divisible(base * width, divisor)
        for i in range(depth):
            block += 1
            prefix = f'features{group}.{i}.conv' if update else f'features.{block}.conv'
            hidden = chs * expand
            depthwise = 0 if expand == 1 else 3
            if depthwise:
                weights |= conv(f'{prefix}.0', hidden, chs) | norm(f'{prefix}.1', hidden)
            weights |= conv(f'{prefix}.{depthwise}', hidden, 1, 3) | norm(f'{prefix}.{depthwise + 1}', hidden)
            weights |= conv(f'{prefix}.{depthwise + 3}', out_chs, hidden) | norm(f'{prefix}.{depthwise + 4}', out_chs)
            chs = out_chs
        if update and 1 <= group <= 5:
            weights |= unit(f'wavelet_{group}', chs, memory_chs)
            memory_chs = 2 * chs if update == 'cat' else chs
    head = divisible(1280 * width, divisor) if width > 1 else 1280
    weights |= conv('conv.0', head, chs) | norm('conv.1', head)
    return weights | {'classifier.weight': torch.randn(num_classes, head), 'classifier.bias': torch.randn(num_classes)}


def resnet(layers, memory=True, num_classes=100):
    """State dict of the authors' ResNet10, 18 or 34."""
    split = layers == (3, 4, 6, 3) and memory
    style = '' if layers == (1, 1, 1, 1) else 'block'
    weights = conv('conv', 64, 3, 7) | norm('bn', 64)
    if memory:
        weights |= unit(f'wavelet_{style}{0 if style else "conv"}', 64, 3)
        weights |= unit(f'wavelet_{style}pool', 64, 64)
    chs = 64
    for stage, depth in enumerate(layers, start=1):
        out_chs = 64 * 2 ** (stage - 1)
        halves = [(f'{stage}1', depth // 2), (f'{stage}2', depth // 2)] if split and stage in (2, 3) else [
            (f'{stage}', depth)]
        for half, blocks in halves:
            memory_chs = chs
            for i in range(1, blocks + 1):
                prefix = f'stage{half}.block{i}'
                weights |= conv(f'{prefix}.conv1', out_chs, chs, 3) | norm(f'{prefix}.bn1', out_chs)
                weights |= conv(f'{prefix}.conv2', out_chs, out_chs, 3) | norm(f'{prefix}.bn2', out_chs)
                if chs != out_chs:
                    weights |= conv(f'{prefix}.shortcut.conv', out_chs, chs) | norm(f'{prefix}.shortcut.bn', out_chs)
                chs = out_chs
            if memory:
                supplement = not (layers == (2, 2, 2, 2) and stage == 4)
                weights |= unit(f'wavelet_{style}{half}', chs, memory_chs, supplement)
    return weights | {'fc.weight': torch.randn(num_classes, chs), 'fc.bias': torch.randn(num_classes)}


def released(weights):
    """A checkpoint file's content as the authors released it: wrapped and prefixed, with counters and Haar filters."""
    leftovers = {'total_ops': torch.zeros(1), 'wavelet_conv.total_params': torch.zeros(1)}
    leftovers |= {f'wavelet_conv.dwt.h{i}_{d}': torch.zeros(1, 1, 2, 1) for i in (0, 1) for d in ('col', 'row')}
    state_dict = {f'module.{k}': v for k, v in (leftovers | weights).items()}
    return {'epoch': 3, 'arch': 'mobilenetv2', 'state_dict': state_dict, 'optimizer': {'param_groups': [{'lr': 0.1}]}}
