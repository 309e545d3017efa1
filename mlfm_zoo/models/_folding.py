"""A trunk for inference: each batch norm that may be is folded into a convolution beside it.

A norm in eval mode is a scale and a shift of each channel. Where a norm alone reads what a convolution puts out, they
are folded back into it; where it has no such convolution before it, but one that pads nothing alone reads what it puts
out, ahead. Which feeds which is read off the network's own graph, as torch.fx traces it, not off names.
"""

import copy
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Tuple, TypeVar

import torch
import torch.fx
import torch.nn as nn
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules, reparameterize_model
from torchvision.ops import FrozenBatchNorm2d

from .._timm import config_of
from ..memory.fused import Fused, scale_and_shift

__all__ = ['fuse_trunk']

# Exact classes: a subclass may do more.
NORMS = (
    nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)

# What timm's reparameterize_model puts together by itself, memory units among it.
PUT_TOGETHER = ('fuse', 'reparameterize', 'switch_to_deploy')

ModelT = TypeVar('ModelT', bound=nn.Module)


class _Folded(Fused):
    """What convolutions that hold norms share, to be put before the convolution's class: no training, no checkpoint."""

    fused_part = 'trunk of this network'

    @torch.jit.ignore
    def train(self, mode: bool = True):
        if mode:
            raise RuntimeError('The trunk of this network is fused for inference, without the norms that training '
                               'needs: train the network as it was before fuse(trunk=True).')
        return super().train(mode)

    @torch.jit.ignore
    def _load_from_state_dict(self, *args):
        raise RuntimeError(
            'The trunk of this network is fused, and has no norms to load: load the weights before fuse().')


class FoldedConv2d(_Folded, nn.Conv2d):
    """A convolution that holds the norms beside it too, for inference."""


class FoldedConv2dSame(_Folded, Conv2dSame):
    """The same that pads as TensorFlow does."""


FOLDED = {nn.Conv2d: FoldedConv2d, Conv2dSame: FoldedConv2dSame}


class Fold(NamedTuple):
    """A norm to fold.

    Attributes:
        norm: Its name.
        conv: Name of the convolution that takes it in.
        ahead: Whether the convolution reads the norm, instead of the norm the convolution.
    """
    norm: str
    conv: str
    ahead: bool


class FoldTracer(torch.fx.Tracer):
    """Follows a network down to its convolutions and norms, and not into what timm puts together by itself."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            super().is_leaf_module(m, module_qualified_name) or isinstance(m, (nn.Conv2d, *NORMS))
            or type(m) in get_notrace_modules() or any(hasattr(m, name) for name in PUT_TOGETHER))


def fuse_trunk(model: ModelT) -> ModelT:
    """Fuse a network for inference, its trunk with it: `fuse(trunk=True)` for networks of any class.

    Outputs are those of eval mode before, to rounding, and the network is in eval mode afterwards. Branches that timm's
    `reparameterize_model` puts together are, and a memory is fused. A norm stays where folding it would not be exact:
    if it has no statistics, if something else reads what it would be folded over, if the convolution after it pads, or
    if either has hooks, is used twice or is of a class that does more. A fused network can be neither trained nor saved
    as a checkpoint.

    Args:
        model: The network: with memory or without, this package's or timm's.

    Returns:
        The network itself.

    Raises:
        RuntimeError: torch.fx cannot trace the network, which is unchanged then.
    """
    folds = find_folds(model)
    reparameterize_model(model.eval(), inplace=True)
    for fold in folds:
        _apply(model, fold)
    return model


def find_folds(model: nn.Module) -> List[Fold]:
    """The norms of a network that can be folded exactly, in the order in which it calls them.

    Args:
        model: The network, which is left as it is.

    Returns:
        What to fold into what.

    Raises:
        RuntimeError: torch.fx cannot trace the network.
    """
    traced: Any = copy.deepcopy(model).eval()  # for its modes are a part of what is traced
    if hasattr(traced, 'set_grad_checkpointing'):
        traced.set_grad_checkpointing(False)
    try:
        graph = FoldTracer().trace(traced)
    except Exception as error:  # of any kind: it is the network's own code that meets values without numbers
        what = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
        name = config_of(model).get('architecture') or type(model).__name__
        raise RuntimeError(
            f'torch.fx cannot trace {name} ({what}), so that its trunk was not fused: call '
            'timm.models.reparameterize_model instead, which fuses a memory and leaves the trunk.') from error
    modules: Dict[Any, Any] = dict(traced.named_modules())
    registered = Counter(id(m) for _, m in traced.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in graph.nodes if node.op == 'call_module')
    read = {str(node.target).rpartition('.')[0] for node in graph.nodes if node.op == 'get_attr'}

    def is_free(node: torch.fx.Node, classes: Tuple[type, ...]) -> bool:
        """Whether a node is a module of one of the classes that nothing but this node has to do with."""
        if node.op != 'call_module' or calls[node.target] > 1 or node.target in read:
            return False
        module = modules[node.target]
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        return type(module) in classes and registered[id(module)] == 1 and not any(hooks)

    folds = []
    for node in graph.nodes:
        if not is_free(node, NORMS) or not _has_statistics(modules[node.target]):
            continue
        [before], readers = node.all_input_nodes, list(node.users)
        if is_free(before, tuple(FOLDED)) and len(before.users) == 1:
            folds.append(Fold(node.target, str(before.target), ahead=False))
        elif (
                len(readers) == 1 and is_free(readers[0], (nn.Conv2d,)) and modules[readers[0].target].padding == (0, 0)
                and isinstance(_what_follows(modules[node.target]), nn.Identity)):
            folds.append(Fold(node.target, readers[0].target, ahead=True))
    return folds


@torch.no_grad()
def _apply(model: nn.Module, fold: Fold) -> None:
    """Put a convolution that holds the norm in the place of the two."""
    conv: Any = model.get_submodule(fold.conv)
    norm = model.get_submodule(fold.norm)
    scale, shift = scale_and_shift(norm)
    # at least in float32, in which the statistics of norms are kept, whatever the weights are rounded to
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    weight = conv.weight.to(dtype)
    bias = weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.to(dtype)
    if fold.ahead:
        grouped = weight.unflatten(0, (conv.groups, -1))  # groups, outputs of each, inputs of each, kernel
        inputs = (conv.groups, 1, -1, 1, 1)
        bias = bias + (grouped * shift.view(inputs)).sum(dim=(2, 3, 4)).flatten()
        weight = (grouped * scale.view(inputs)).flatten(0, 1)
    else:
        weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
    folded = copy.deepcopy(conv)
    folded.__class__ = FOLDED.get(type(conv), type(conv))  # one that holds another norm already is of its class
    folded.weight, folded.bias = (
        nn.Parameter(value.to(conv.weight.dtype), conv.weight.requires_grad) for value in (weight, bias))
    for name, module in ((fold.conv, folded), (fold.norm, _what_follows(norm).eval())):
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, module)


def _has_statistics(norm: nn.Module) -> bool:
    return getattr(norm, 'running_mean', None) is not None and getattr(norm, 'running_var', None) is not None


def _what_follows(norm: nn.Module) -> nn.Module:
    """What a norm of timm's does after normalising; of torch's, nothing."""
    parts: List[nn.Module] = [getattr(norm, name) for name in ('drop', 'act') if hasattr(norm, name)]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts) if len(parts) > 1 else parts[0] if parts else nn.Identity()
