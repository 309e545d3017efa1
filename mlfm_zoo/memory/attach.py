"""Attach a memory at identity to a network, and calibrate it to the trunk."""

from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Type, TypeVar, Union

import timm
import torch
import torch.nn as nn
from timm.utils import unwrap_model

from .._timm import model_name
from .unit import LowFrequencyMemoryUnit

__all__ = ['MemorySupport', 'attach_memory', 'calibrate_memory', 'memory_family', 'supports_memory']

# The class that a network becomes. Keys are exact classes: a subclass may call its blocks in another way.
FAMILIES: Dict[Type[nn.Module], Type[nn.Module]] = {}

NetworkT = TypeVar('NetworkT', bound=Type[nn.Module])


def memory_family(*trunk_classes: Type[nn.Module]) -> Callable[[NetworkT], NetworkT]:
    """Register a class with memory for the given trunk classes, for `attach_memory`.

    Args:
        *trunk_classes: Classes whose networks differ from the decorated class by the memory only.

    Returns:
        A decorator that leaves the class as it is.

    Examples:
        >>> class TinyResNet(timm.models.ResNet): ...
        >>> register = memory_family(TinyResNet)  # then: @register above the class with memory
    """
    def register(network_cls: NetworkT) -> NetworkT:
        FAMILIES.update(dict.fromkeys(trunk_classes, network_cls))
        return network_cls
    return register


class MemorySupport(NamedTuple):
    """Whether a network can have a memory, and why not; truthy if it can.

    Attributes:
        supported: Whether it can.
        reason: Why not, in one sentence; empty if it can.
    """
    supported: bool
    reason: str

    def __bool__(self) -> bool:
        return self.supported


def supports_memory(model: Union[str, nn.Module]) -> MemorySupport:
    """Check whether `attach_memory` can give a model a memory.

    Args:
        model: A timm model, or the name of one, which is then built on the meta device.

    Returns:
        Whether it can, and the reason if not.

    Examples:
        >>> bool(supports_memory('resnext50_32x4d'))
        True
        >>> supports_memory('vit_tiny_patch16_224').reason
        'vit_tiny_patch16_224 is a VisionTransformer, expected one of ByobNet, ...'
    """
    if isinstance(model, str):
        if not timm.is_model(model.split('.')[0]):
            return MemorySupport(False, f'timm knows no model named {model}.')
        model = timm.create_model(model, device='meta')
    if type(model) in FAMILIES.values():
        return MemorySupport(False, f'{model_name(model)} has a memory already.')
    if type(model) not in FAMILIES:
        families = ', '.join(sorted(cls.__name__ for cls in FAMILIES if cls.__module__.startswith('timm.')))
        return MemorySupport(False, f'{model_name(model)} is a {type(model).__name__}, expected one of {families}.')
    network_cls: Any = FAMILIES[type(model)]  # the family's class knows the sites
    try:
        network_cls.memory_sites(model, network_cls.options_cls())
    except ValueError as error:
        return MemorySupport(False, str(error))
    return MemorySupport(True, '')


def attach_memory(model: nn.Module, **memory_options: Any) -> nn.Module:
    """Give a timm model a memory that starts at identity, and keep its weights.

    In eval mode the model's outputs stay the same. In training mode each output gate normalizes by the batch;
    `calibrate_memory` keeps outputs close there too.

    Args:
        model: A timm model of a class that `supports_memory` takes.
        **memory_options: Options of the memory, see `MemoryOptions`; ResNets also take `memory_split`.

    Returns:
        The same object, now of this package's class for its family.

    Raises:
        ValueError: The model cannot have a memory, or an option is out of range. The model is then unchanged.
        TypeError: An option is unknown.

    Examples:
        >>> model = timm.create_model('resnet18', num_classes=10).eval()
        >>> image = torch.randn(1, 3, 64, 64)
        >>> before = model(image)
        >>> torch.allclose(attach_memory(model, memory_update='cat')(image), before, atol=1e-4)
        True
    """
    support = supports_memory(model)
    if not support:
        raise ValueError(f'{support.reason[:-1]}: memory was not attached.')
    trunk_cls = type(model)
    network: Any = model  # gets the methods of the family's class
    network.__class__ = FAMILIES[trunk_cls]
    try:
        options = network.options_cls.take_from(memory_options)
        for name in memory_options:
            raise TypeError(f'{name!r} is not an option of the memory, expected {", ".join(vars(options))}.')
        network.add_memory(options)
    except BaseException:
        network.__class__ = trunk_cls
        raise
    network.memory.init_identity()
    return network


@torch.no_grad()
def calibrate_memory(model: nn.Module, loader: Iterable[Any], progress: bool = False) -> nn.Module:
    """Calibrate a memory at identity to be near the identity in training mode too.

    An output gate is a batch norm. In training mode it normalizes the trunk's features to zero mean and unit variance.
    Calibration sets its weight and bias to restore the mean and variance that they have over the loader's images.

    Args:
        model: A network with memory at identity: a warm start, or a result of `attach_memory`.
        loader: Batches of images (N, in_chans, H, W), or tuples that start with one, as timm's loaders yield.
        progress: Whether to print the number of batches done.

    Returns:
        The same model, in the mode it was in.

    Raises:
        ValueError: The model has no memory, its memory is not at identity, its output gates are pruned or
            parametrized, or the loader is empty.

    Examples:
        >>> model = attach_memory(timm.create_model('test_resnet'))
        >>> batches = [torch.randn(8, 3, 64, 64) for _ in range(2)]
        >>> model = calibrate_memory(model, batches)
    """
    units: List[LowFrequencyMemoryUnit] = [m for m in model.modules() if isinstance(m, LowFrequencyMemoryUnit)]
    if not units:
        raise ValueError(f'{model_name(model)} has no memory to calibrate: attach one first.')
    if not all(unit.is_identity() for unit in units):
        raise ValueError('The memory is not at identity, so setting its output gates would change what it has learned: '
                         'calibrate a warm start before training.')
    if not all({'weight', 'bias'} <= unit.output_gate.state_dict().keys() for unit in units):
        raise ValueError('An output gate is pruned or parametrized, so its weights cannot be set: calibrate first.')
    device = units[0].output_gate.weight.device
    counts = [0] * len(units)
    # in float64 on the CPU, which not every device has: sums over many images would lose digits in float32
    sums = [torch.zeros(2, unit.output_gate.num_features, dtype=torch.float64) for unit in units]

    def record(index: int):
        def hook(unit, args):
            x = args[0].detach().cpu().double()
            counts[index] += x.numel() // x.shape[1]
            sums[index] += torch.stack([x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3))])
        return hook

    network = unwrap_model(model)
    modes = {module: module.training for module in network.modules()}
    handles = [unit.register_forward_pre_hook(record(i)) for i, unit in enumerate(units)]
    try:
        network.eval()
        with torch.compiler.set_stance('force_eager'):  # compiled code would not call the hooks
            for i, batch in enumerate(loader, start=1):
                images = batch if torch.is_tensor(batch) else batch[0]
                network(images.to(device))
                if progress:
                    print(f'\rcalibrated on {i} batches', end='', flush=True)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
        if progress:
            print()
    if not counts[0]:
        raise ValueError('The loader is empty: give it at least one batch of images.')
    for unit, count, (total, squares) in zip(units, counts, sums):
        mean = total / count
        unit.calibrate_identity(mean.to(device), (squares / count - mean.square()).clamp(min=0).to(device))
    return model
