"""The memory of one network: its units, under names that mirror the trunk's."""

import warnings
from typing import TYPE_CHECKING, Any, Collection, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.fx
import torch.nn as nn

from .._folding import Fusible
from .bands import image_bands
from .options import MemoryOptions
from .unit import LowFrequencyMemoryUnit

__all__ = ['LowFrequencyMemory', 'MemorySite', 'PassThrough']


class MemorySite(NamedTuple):
    """A place in the trunk that has a memory unit, and the feature there.

    Attributes:
        name: Name of the unit, see `LowFrequencyMemory`.
        num_chs: Channels of the feature.
        reduction: Image size over feature size, a power of 2.
        ceil_mode: Whether the trunk rounds odd sides up when it halves them between the previous site and this one.

    Examples:
        >>> MemorySite('layer1', num_chs=64, reduction=4).ceil_mode
        True
    """
    name: str
    num_chs: int
    reduction: int
    ceil_mode: bool = True


class PassThrough(nn.Module):
    """Takes the place of a missing unit, so that the forward pass is a plain loop."""

    def forward(
            self,
            x: torch.Tensor,
            memory: torch.Tensor,
            bands: List[torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        return x, memory


class LowFrequencyMemory(Fusible):
    """All memory units of one network, and the image bands that they share.

    Names mirror the trunk's. The site 'stem' becomes the submodule `stem`. The site 'layer2.3' becomes entry 3 of the
    ModuleList `layer2`, which can then be zipped with the trunk's own. Entries without a site are a `PassThrough`.

    Args:
        sites: The sites, in the order of the trunk's forward pass.
        places: Submodules in the same order: None for a single unit, or the length of a ModuleList.
        in_chans: Channels of the image.
        options: Options of the units.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Examples:
        >>> sites = [MemorySite('stem', 16, 2), MemorySite('layer1', 32, 4)]
        >>> memory = LowFrequencyMemory(sites, {'stem': None, 'layer1': None})
        >>> [tuple(band.shape) for band in memory.image_bands(torch.randn(1, 3, 64, 64))]
        [(1, 3, 64, 64), (1, 3, 32, 32), (1, 3, 16, 16)]
    """

    if TYPE_CHECKING:  # units, and lists of units, by the names of sites
        def __getattr__(self, name: str) -> Any: ...

    def __init__(
            self,
            sites: Sequence[MemorySite],
            places: Mapping[str, Optional[int]],
            in_chans: int = 3,
            options: MemoryOptions = MemoryOptions(),
            device: Any = None,
            dtype: Any = None,
    ):
        super().__init__()
        self.in_chans = in_chans
        for name, length in places.items():
            self.add_module(
                name, PassThrough() if length is None else nn.ModuleList(PassThrough() for _ in range(length)))
        memory_chs = in_chans
        for i, site in enumerate(sites):
            last = i == len(sites) - 1
            supplemented = ('all',) if last else ('all', 'all_but_last')
            forget_last = int(options.memory_forget_last)
            unit = LowFrequencyMemoryUnit(
                site.num_chs,
                memory_chs,
                in_chans=in_chans,
                level=_level(site.reduction),
                update=options.memory_update,
                supplement=options.memory_supplement in supplemented,
                forget=forget_last if last else _level(sites[i + 1].reduction) - _level(site.reduction),
                ceil_mode=True if last else sites[i + 1].ceil_mode,
                last=last,
                device=device,
                dtype=dtype,
            )
            self.set_submodule(site.name, unit)
            memory_chs = site.num_chs if options.memory_update == 'add' else 2 * site.num_chs
        self.first_level = _level(sites[0].reduction)
        self.ceil_modes: List[bool] = []  # each level of the image's bands rounds as the trunk does at that level
        for site in sites:
            self.ceil_modes += [site.ceil_mode] * (_level(site.reduction) - len(self.ceil_modes))
        self.keep([site.name for site in sites])

    def keep(self, names: Collection[str]) -> None:
        """Remove all other units, and the levels of the image's bands that only they need.

        Args:
            names: Names of the sites whose units stay.
        """
        for name, module in list(self.named_modules()):
            if isinstance(module, LowFrequencyMemoryUnit) and name not in names:
                self.set_submodule(name, PassThrough())
        units = self.units()
        self.num_levels = max([self.first_level] + [u.level for u in units if u.supplement_gate is not None])
        self.reduction = 2 ** max([u.level for u in units])

    def units(self) -> List[LowFrequencyMemoryUnit]:
        """The units, in the order of the trunk's forward pass."""
        return [m for m in self.modules() if isinstance(m, LowFrequencyMemoryUnit)]

    def fuse(self) -> 'LowFrequencyMemory':
        """Fuse the units for inference, and set them to eval mode.

        See `LowFrequencyMemoryUnit.fuse`. A warning names the units that cannot be fused.

        Returns:
            The memory itself.
        """
        units = self.units()
        for unit in units:
            unit.fuse()
        left = [name for name, module in self.named_modules() if module in units and not module.is_fused()]
        if left:
            warnings.warn(
                f'{len(left)} of {len(units)} memory units were not fused, because hooks, pruning, parametrizations or '
                f'modules of other classes are on their convolutions or norms: {", ".join(left)}.', stacklevel=3)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether units recompute their activations in the backward pass."""
        for unit in self.units():
            unit.grad_checkpointing = enable

    def init_identity(self) -> None:
        """Set every unit to the identity, see `LowFrequencyMemoryUnit.init_identity`."""
        for unit in self.units():
            unit.init_identity()

    def forward(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Raise a RuntimeError: the memory is not a layer in a sequence."""
        raise RuntimeError(
            "The network's children were called one after the other, which leaves the memory out: take features with "
            'features_only=True or forward_intermediates.')

    def image_bands(self, image: torch.Tensor) -> List[torch.Tensor]:
        """Compute the image's bands; `bands[first_level]` is the first memory.

        Args:
            image: Image batch (N, C, H, W).

        Returns:
            Bands as `image_bands` returns them, as deep as the units need.

        Raises:
            ValueError: The image is not a batch with `in_chans` channels, or is smaller than one pixel of the network's
                deepest map.
        """
        check_image(image, self.in_chans, self.reduction)
        return image_bands(image, self.num_levels, self.ceil_modes)


@torch.fx.wrap  # a leaf for every tracer: its branches depend on the image
def check_image(image: torch.Tensor, in_chans: int, reduction: int) -> None:
    """Raise a ValueError if an input is no image batch, or smaller than one pixel of the deepest map spans."""
    if image.dim() != 4:
        raise ValueError(
            f'The image has {image.dim()} dimensions, expected 4, a batch (N, {in_chans}, H, W): add the one that is '
            'missing, a single image as image[None].')
    if image.shape[1] != in_chans:
        raise ValueError(
            f'The image has {image.shape[1]} channels, expected {in_chans}: convert it, or build the model with '
            f'in_chans={image.shape[1]}.')
    height, width = image.shape[-2], image.shape[-1]
    if height < reduction or width < reduction:
        raise ValueError(
            f'The image of {height}x{width} pixels is smaller than one cell of the deepest feature map, expected '
            f'at least {reduction}x{reduction}: resize it, or build the model with a smaller output_stride.')


def _level(reduction: int) -> int:
    return reduction.bit_length() - 1
