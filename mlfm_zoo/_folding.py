"""Batch norms folded into convolutions for inference, in gates and whole networks.

A norm in eval mode is a scale and a shift of each channel. If a norm is a convolution's only consumer, it is folded
back into it. Otherwise, if an unpadded convolution is the norm's only consumer, it is folded forward. Which module
feeds which is read from the network's graph, as torch.fx traces it, not from names.
"""

import copy
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Set, Tuple, TypeVar

import torch
import torch.fx
import torch.nn as nn
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules, reparameterize_model
from timm.utils import unwrap_model
from torchvision.ops import FrozenBatchNorm2d

from ._timm import model_name

__all__ = ['NORMS', 'Fusible', 'InferenceOnly', 'fold_norm', 'fuse_trunk', 'is_plain', 'scale_and_shift']

# Norms that can be folded, and timm's, which add a dropout or an activation.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)
ACT_NORMS = (BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)

# Modules with one of these methods are folded by timm's reparameterize_model, memory units among them.
PUT_TOGETHER = ('fuse', 'reparameterize', 'switch_to_deploy')

ModelT = TypeVar('ModelT', bound=nn.Module)


class Fusible(nn.Module):
    """Base of fusible modules; `train()` raises if one is fused, and changes nothing."""

    @torch.jit.ignore
    def train(self, mode: bool = True):
        if mode and any(isinstance(module, InferenceOnly) for module in self.modules()):
            raise RuntimeError('This network is fused for inference, without the norms that training needs: train the '
                               'network as it was before fuse().')
        return super().train(mode)


class InferenceOnly(Fusible):
    """Base of modules without norms, listed first: no training, no checkpoint."""

    @torch.jit.ignore
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if not keep_vars:  # torch.export keeps the variables
            raise RuntimeError(
                'This network is fused, which no checkpoint can hold: save the network before fuse().')
        super()._save_to_state_dict(destination, prefix, keep_vars)

    @torch.jit.ignore
    def _load_from_state_dict(self, *args):
        raise RuntimeError('This network is fused, and has no norms to load: load the weights before fuse().')


class FoldedConv2d(InferenceOnly, nn.Conv2d):
    """Convolution with the neighboring norms folded into it, for inference."""


class FoldedConv2dSame(InferenceOnly, Conv2dSame):
    """The same, padded as TensorFlow does."""


FOLDED = {nn.Conv2d: FoldedConv2d, Conv2dSame: FoldedConv2dSame}


class Fold(NamedTuple):
    """Names of a norm and of the convolution to fold it into, which follows the norm if `ahead`."""
    norm: str
    conv: str
    ahead: bool


class FoldTracer(torch.fx.Tracer):
    """Tracer that stops at convolutions, norms, and modules that timm reparameterizes."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            super().is_leaf_module(m, module_qualified_name) or isinstance(m, (nn.Conv2d, *NORMS))
            or type(m) in get_notrace_modules() or any(hasattr(m, name) for name in PUT_TOGETHER))


def is_plain(module: nn.Module, classes: Tuple[type, ...]) -> bool:
    """Whether replacing a module loses no hooks, parametrizations or adapters.

    Pruning and weight norm are hooks. Parametrizations and many adapters are subclasses, so `classes` are exact.
    """
    return type(module) in classes and not _has_hooks(module) and 'forward' not in vars(module)


def fuse_trunk(model: ModelT) -> ModelT:
    """Fold a network's batch norms into its convolutions, for inference.

    Outputs equal those of eval mode, to rounding, and the network ends in eval mode. It also does what timm's
    `reparameterize_model` does, and fuses a memory. A fused network can be neither trained nor saved as a checkpoint.

    A norm stays where folding would not be exact: it has no statistics, the value between norm and convolution has
    another reader, the convolution after it pads, or one of the two is used twice. It also stays where folding would
    lose a hook, a parametrization or a module of another class.

    Args:
        model: Any network that torch.fx can trace, also in DataParallel or compiled.

    Returns:
        The network itself.

    Raises:
        RuntimeError: torch.fx cannot trace the network, which is unchanged then.

    Examples:
        >>> model = fuse_trunk(timm.create_model('test_resnet').eval())
        >>> any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        False
    """
    network = unwrap_model(model)
    parts: Dict[str, nn.Module] = {}
    for fold in find_folds(network):
        norm = network.get_submodule(fold.norm)
        conv = parts.get(fold.conv, network.get_submodule(fold.conv))  # may have another norm folded into it already
        parts[fold.conv] = fold_norm(conv, norm, fold.ahead)
        parts[fold.norm] = _what_follows(norm).eval()
    model.eval()
    reparameterize_model(network, inplace=True)
    for name, part in parts.items():
        network.set_submodule(name, part)
    return model


def find_folds(model: nn.Module) -> List[Fold]:
    """Find the norms of a network that can be folded exactly, in the order in which it calls them."""
    # Tracing depends on the modes, so a copy is set to eval mode. It shares the weights that pruning and weight norm
    # compute, which torch cannot copy.
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    traced: Any = copy.deepcopy(model, {id(v): v for v in computed}).eval()
    if hasattr(traced, 'set_grad_checkpointing'):
        traced.set_grad_checkpointing(False)
    try:
        graph = FoldTracer().trace(traced)
    except Exception as error:  # of any kind: the network's own code runs on proxies without values
        what = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
        raise RuntimeError(
            f'torch.fx cannot trace {model_name(model)} ({what}), so its trunk was not fused: call '
            'timm.models.reparameterize_model, which fuses the memory alone.') from error
    modules: Dict[Any, Any] = dict(traced.named_modules())
    registered = Counter(id(m) for _, m in traced.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in graph.nodes if node.op == 'call_module')
    with_hooks = [f'{name}.' for name, module in modules.items() if name and _has_hooks(module)]
    read = {str(node.target).rpartition('.')[0] for node in graph.nodes if node.op == 'get_attr'}

    def watched(name: str) -> Set[str]:
        """Names of the modules with hooks that contain a module."""
        return {hooked for hooked in with_hooks if f'{name}.'.startswith(hooked)}

    def is_free(node: torch.fx.Node, classes: Tuple[type, ...]) -> bool:
        """Whether a node is a plain module of one of the classes that is used only here."""
        if node.op != 'call_module' or calls[node.target] > 1 or node.target in read:
            return False
        module = modules[node.target]
        return is_plain(module, classes) and registered[id(module)] == 1

    folds = []
    for node in graph.nodes:
        if not is_free(node, NORMS + ACT_NORMS) or modules[node.target].running_mean is None:
            continue
        [before], readers = node.all_input_nodes, list(node.users)
        if is_free(before, tuple(FOLDED)) and len(before.users) == 1:
            fold = Fold(node.target, str(before.target), ahead=False)
        elif (
                len(readers) == 1 and is_free(readers[0], (nn.Conv2d,)) and modules[readers[0].target].padding == (0, 0)
                and isinstance(_what_follows(modules[node.target]), nn.Identity)):
            fold = Fold(node.target, str(readers[0].target), ahead=True)
        else:
            continue
        if watched(fold.norm) == watched(fold.conv):
            folds.append(fold)
    return folds


def scale_and_shift(norm: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C,) that a norm with running statistics is in eval mode, in float32 at least."""
    mean, var = norm.running_mean, norm.running_var
    mean, var = (value.to(torch.promote_types(value.dtype, torch.float32)) for value in (mean, var))
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    return scale, -mean * scale if norm.bias is None else norm.bias - mean * scale


@torch.no_grad()
def fold_norm(conv: Any, norm: nn.Module, ahead: bool = False) -> nn.Conv2d:
    """Make a convolution for inference that equals `conv` and `norm` in eval mode, computed in float32 at least.

    If `ahead`, the convolution, which must not pad, follows the norm.
    """
    scale, shift = scale_and_shift(norm)
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    weight = conv.weight.to(dtype)
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.to(dtype)
    if ahead:
        grouped = weight.unflatten(0, (conv.groups, -1))  # groups, outputs of each, inputs of each, kernel
        inputs = (conv.groups, 1, -1, 1, 1)
        bias = bias + (grouped * shift.view(inputs)).sum(dim=(2, 3, 4)).flatten()
        weight = (grouped * scale.view(inputs)).flatten(0, 1)
    else:
        weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
    folded = copy.deepcopy(conv)
    folded.__class__ = FOLDED.get(type(conv), type(conv))  # a convolution that was folded before has its class
    folded.training = False
    folded.weight, folded.bias = (
        nn.Parameter(value.to(conv.weight.dtype), conv.weight.requires_grad) for value in (weight, bias))
    return folded


def _has_hooks(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _what_follows(norm: nn.Module) -> nn.Module:
    """The dropout and activation of timm's norms; an identity for torch's norms."""
    parts: List[nn.Module] = [getattr(norm, name) for name in ('drop', 'act') if hasattr(norm, name)]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts) if len(parts) > 1 else parts[0] if parts else nn.Identity()
