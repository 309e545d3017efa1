"""What the families share: a trunk of timm's with a memory beside it, and why weights do not fit it."""

from typing import TYPE_CHECKING, Any, Collection, Dict, Iterator, List, Mapping, Optional, Tuple, Type

import torch
import torch.fx
import torch.nn as nn
from timm.layers import get_device_dtype, to_2tuple
from timm.models import checkpoint

from .._folding import Fusible, fuse_trunk
from .._timm import config_of, model_name
from ..memory import LowFrequencyMemory, LowFrequencyMemoryUnit, MemoryOptions, MemorySite

__all__ = [
    'MemoryNetwork', 'SplitStage', 'UnitsInside', 'classifier_prefixes', 'image_convs', 'refuse_misfit',
    'refuse_other_weights', 'rounds_up', 'weight_faults',
]

MEMORY_REMEDY = 'give weights of this network, made with the same memory options'

if TYPE_CHECKING:
    class Trunk(nn.Module):
        """What timm's networks have in common, for which timm has no class; their layers have names of their own."""
        in_chans: int
        feature_info: List[Dict[str, Any]]

        def set_grad_checkpointing(self, enable: bool = True) -> None: ...

        def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> List[int]: ...

        def __getattr__(self, name: str) -> Any: ...
else:
    Trunk = nn.Module


class UnitsInside:
    """The memory's way through a stage that has units between its blocks.

    A stage takes it as its second argument, and still takes and returns one feature for hooks. It is an object and not
    a list, because wrappers such as FSDP copy lists of tensors.

    Args:
        units: The stage's units, one for each block; the last is called after the stage.
        memory: Memory (N, M, H, W) before the stage.
        bands: The image's bands.
        grad_checkpointing: Whether blocks compute their insides again in the backward pass.

    Attributes:
        passed: Feature and memory after each unit inside, once the stage was called.
    """

    def __init__(
            self,
            units: nn.ModuleList,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
            grad_checkpointing: bool = False,
    ):
        self.units, self.memory, self.bands, self.grad_checkpointing = units, memory, bands, grad_checkpointing
        self.passed: List[Tuple[torch.Tensor, torch.Tensor]] = []

    def written(self) -> torch.Tensor:
        """Return the memory after the last unit inside (N, M', H', W')."""
        if not self.passed:
            return self.memory
        memory = self.passed[-1][1]
        check_gradient(self.memory, memory)
        return memory


@torch.fx.wrap  # a leaf for every tracer: its branch depends on the memory
def check_gradient(read: torch.Tensor, written: torch.Tensor) -> None:
    """Refuse a memory that lost its gradient on the way through a stage.

    Args:
        read: Memory before the stage.
        written: Memory after its last unit inside.

    Raises:
        RuntimeError: It did, as under a reentrant checkpoint, which knows the arguments and results of a stage alone.
    """
    if torch.is_grad_enabled() and read.requires_grad and not written.requires_grad:
        raise RuntimeError(
            'A reentrant checkpoint around a stage with memory units inside cuts off their gradient: use '
            'use_reentrant=False, or set_grad_checkpointing of the network.')


class SplitStage(nn.Sequential):
    """Stage of a trunk with memory units between its blocks."""

    @torch.jit.unused
    def forward(self, input: torch.Tensor, inside: Optional[UnitsInside] = None) -> torch.Tensor:
        """Walk blocks and units together, up to the last block.

        Args:
            input: Feature (N, C, H, W).
            inside: The memory and its units.

        Returns:
            The feature (N, C', H', W') that the stage's last unit takes.

        Raises:
            RuntimeError: The stage is called outside of its network.
        """
        if inside is None:
            raise RuntimeError('A memory unit lies inside this stage: call the network, not the stage alone.')
        # `inside.memory` stays, for a checkpoint around the stage calls it again
        x, memory, inside.passed = input, inside.memory, []
        for i, block in enumerate(self):
            x = checkpoint(block, x) if inside.grad_checkpointing else block(x)
            if i < len(self) - 1:
                x, memory = inside.units[i](x, memory, inside.bands)
                inside.passed.append((x, memory))
        return x


class MemoryNetwork(Fusible, Trunk):
    """What networks with memory share, to be put before the trunk's class.

    A family says with `memory_sites` where its units sit, and walks trunk and memory together in its own forward pass.

    Args:
        *args: As the trunk's class.
        **kwargs: As the trunk's class, and the options of the memory, see `options_cls`.

    Raises:
        ValueError: A memory option is out of range.
    """

    options_cls: Type[MemoryOptions] = MemoryOptions

    def __init__(self, *args: Any, **kwargs: Any):
        options = self.options_cls.take_from(kwargs)
        super().__init__(*args, **kwargs)
        self.add_memory(options)

    def add_memory(self, options: MemoryOptions) -> None:
        """Make the memory of a network whose trunk is there.

        Args:
            options: How it is made.
        """
        sites, places = self.memory_sites(options)
        self.memory = LowFrequencyMemory(sites, places, self.in_chans, options, **get_device_dtype(self))
        self.memory_options = options
        self.memory.train(self.training)
        self._traits = dict(getattr(self, '_traits', {}), first_conv=image_convs(self))

    def memory_sites(self, options: Any) -> Tuple[List[MemorySite], Dict[str, Optional[int]]]:
        """Say where the units sit in the trunk, or in what is left of it if it is pruned.

        Args:
            options: How the memory is made, a record of `options_cls`.

        Returns:
            The sites in the order in which the trunk passes them, and all places for units, as `LowFrequencyMemory`
            takes them.
        """
        raise NotImplementedError

    def named_children(self) -> Iterator[Tuple[str, nn.Module]]:
        """The children, the memory first.

        `nn.Sequential(*model.children())` and torchvision's `IntermediateLayerGetter` call children one after the
        other, and would leave the memory out without a word. They meet it first, and its call raises.
        """
        children = dict(super().named_children())
        return iter(sorted(children.items(), key=lambda item: item[0] != 'memory'))

    def fuse(self, trunk: bool = False) -> 'MemoryNetwork':
        """Fuse the memory for inference, as `timm.models.reparameterize_model` does.

        Outputs are those of eval mode before, to rounding. A fused network cannot be saved as a checkpoint.

        Args:
            trunk: Whether to fold the trunk's batch norms into its convolutions too, see `fuse_trunk`; otherwise the
                trunk is left as it is.

        Returns:
            The network itself.

        Raises:
            RuntimeError: The trunk is to be fused and torch.fx cannot trace it; the network is unchanged then.
        """
        if trunk:
            return fuse_trunk(self)
        self.memory.fuse()
        return self

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks and memory units compute their insides again in the backward pass."""
        super().set_grad_checkpointing(enable)
        self.memory.set_grad_checkpointing(enable)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> List[int]:
        """As timm's, and the memory units of the stages that go."""
        take_indices = super().prune_intermediate_layers(*args, **kwargs)
        sites, _ = self.memory_sites(self.memory_options)
        self.memory.keep([site.name for site in sites])
        return take_indices

    # Says in one sentence why weights do not fit, where torch would list every parameter.
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        if strict:
            refuse_misfit(self, state_dict, weight_faults(self.state_dict(), state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def image_convs(model: nn.Module) -> Tuple[str, ...]:
    """Names of all convolutions that see the image: the stem's, the first input gate's and every supplement gate's.

    They are what `in_chans` changes, and what timm adapts when weights of other `in_chans` are loaded.
    """
    units = [(n, m) for n, m in model.named_modules() if isinstance(m, LowFrequencyMemoryUnit)]
    return (
        *_stem_convs(model),
        *(f'{name}.input_gate.conv' for name, _ in units[:1]),
        *(f'{name}.supplement_gate.conv' for name, unit in units if unit.supplement_gate is not None),
    )


def _stem_convs(model: nn.Module) -> List[str]:
    """Names of the trunk's convolutions that see the image: the first, or one in each branch of the block it is in."""
    first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    for name, module in model.named_modules():
        # a block whose branches timm can put together into one convolution, as in the stems of RepVGG and MobileOne
        if hasattr(module, 'reparameterize') and first.startswith(f'{name}.'):
            convs = [n for n, m in module.named_modules() if isinstance(m, nn.Conv2d)]
            return [f'{name}.{n}' for n in convs if not n.startswith('attn.')]  # which comes after the branches
    return [first]


def rounds_up(*parts: nn.Module) -> bool:
    """Find out how parts of a trunk round odd sides where they halve its map.

    Branches that round in different ways cannot be added, so that a trunk that has such takes no odd sides there, and
    either answer is right.

    Args:
        *parts: What lies between two sites of the memory.

    Returns:
        Whether they round up, as 'periodization' does, or down.

    Raises:
        ValueError: A layer makes the map smaller in another way than by halving it, once or more.
    """
    up = True
    for layer in (module for part in parts for module in part.modules()):
        kernel_size = getattr(layer, 'kernel_size', getattr(layer, 'filt_size', None))  # filt_size is BlurPool2d's
        if kernel_size is None or not hasattr(layer, 'padding'):  # blocks say their stride too
            continue
        stride, padding, dilation = layer.stride, layer.padding, getattr(layer, 'dilation', 1)
        for k, s, p, d in zip(*map(to_2tuple, (kernel_size, stride, padding, dilation))):
            # timm's layers that pad as TensorFlow does, as much as it takes to round up
            same = 'Same' in type(layer).__name__ or getattr(layer, 'dynamic_padding', False)
            # a side of n becomes (n + excess) // s + 1, which is n / s rounded up if that is -1, and down if it is -s
            excess = -1 if same or s == 1 else 2 * p - d * (k - 1) - 1 + (s - 1) * getattr(layer, 'ceil_mode', False)
            if excess not in (-1, -s) or s & (s - 1):
                raise ValueError(
                    f'The trunk has a {type(layer).__name__} of kernel size {k}, stride {s} and padding {p}, expected '
                    'one that halves the sides of its map, as a memory does.')
            up = up and excess == -1
    return up


def weight_faults(expected: Mapping[str, Any], given: Mapping[str, Any], adapted: Collection[str] = ()) -> List[str]:
    """What keeps the tensors `given` from being loaded for those `expected`; shapes of `adapted` may differ."""
    # torch fills in the counters itself, which older files and frozen networks lack
    faults = [f'lacks {k}' for k in expected if k not in given and not k.endswith('num_batches_tracked')]
    faults += [f'has {k}, which the model lacks' for k in given if k not in expected]
    return faults + [
        f'has {k} of shape {tuple(given[k].shape)} where the model has {tuple(v.shape)}'
        for k, v in expected.items()
        if k in given and k not in adapted and getattr(given[k], 'shape', v.shape) != v.shape
    ]


def classifier_prefixes(model: nn.Module) -> Tuple[str, ...]:
    """What the names of the classifier's parameters begin with."""
    names = config_of(model).get('classifier') or ()
    return tuple(f'{name}.' for name in ((names,) if isinstance(names, str) else names))


def refuse_other_weights(
        model: nn.Module,
        state_dict: Mapping[str, Any],
        adapted: Collection[str] = (),
        remedy: str = MEMORY_REMEDY,
) -> None:
    """Refuse weights that do not fit, except for what timm adapts: shapes of `adapted`, and the classifier."""
    classifiers = classifier_prefixes(model)
    expected, given = (
        {k: v for k, v in weights.items() if not k.startswith(classifiers)}
        for weights in (model.state_dict(), state_dict))
    refuse_misfit(model, state_dict, weight_faults(expected, given, adapted), remedy)


def refuse_misfit(
        model: nn.Module,
        state_dict: Mapping[str, Any],
        faults: List[str],
        remedy: str = MEMORY_REMEDY,
) -> None:
    """Say in one sentence what keeps weights from being loaded, if anything does, and what to do."""
    if not faults:
        return
    more = f' (and {len(faults) - 1} more such faults)' if len(faults) > 1 else ''
    if any('convinput' in key or key.startswith('features.stem.') for key in state_dict):
        remedy = "it looks like a checkpoint of the authors', which mlfm-zoo convert reads"
    raise RuntimeError(f'The weights do not fit {model_name(model)}: the file {faults[0]}{more}; {remedy}.')
