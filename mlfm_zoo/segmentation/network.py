"""Base class of the segmentation networks, and timm's backbones as their encoders."""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import reparameterize_model
from torchvision.models.segmentation.fcn import FCNHead

from .._timm import config_of
from ..memory import LowFrequencyMemory, attach_memory
from ..memory.network import check_image
from ..models._create import FeatureNet

__all__ = ['SegmentationNetwork', 'create_encoder']

# Download arguments that the Hub's `from_pretrained` passes on.
HUB_ARGS = ('revision', 'cache_dir', 'force_download', 'local_files_only', 'token')

# No saved network gets these: sources of the encoder's weights, which are saved, and arguments of older Hub libraries.
IGNORED_ARGS = ('pretrained', 'checkpoint_path', 'proxies', 'resume_download')


class SegmentationNetwork(
    nn.Module,
    PyTorchModelHubMixin,
    library_name='mlfm_zoo',
    pipeline_tag='image-segmentation',
    tags=['mlfm', 'segmentation'],
):
    """A network that predicts the class of each pixel.

    Images may have any size: they are padded at the right and the bottom to a multiple of `stride` by repeating the
    edge, and the logits are cropped to the image.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of the Hub's library. config.json holds the
    arguments that build the network, and model.safetensors the weights. `SegmentationNetwork.from_pretrained` builds
    the class that was saved.

    Images are normalized with `mean` and `std`, one value per channel. They come from the encoder's pretrained config,
    adapted to `in_chans` as timm adapts the first convolution, and config.json holds them.

    Args:
        num_classes: Classes.
        in_chans: Channels of the image.
        stride: Image size over the size of the encoder's deepest map.
        aux_chs: Channels of the encoder's last but one feature, for an auxiliary head (torchvision's FCN head) whose
            logits are returned too in training mode; None for no such head.
        encoder_config: The encoder's pretrained config, with mean and standard deviation. If None, those of ImageNet,
            or 0.5 for images other than RGB.
    """

    # takes any arguments, so that the Hub's mixin passes those of all networks to `_from_pretrained`
    def __init__(
            self,
            num_classes: int = 21,
            in_chans: int = 3,
            stride: int = 32,
            aux_chs: Optional[int] = None,
            encoder_config: Optional[Dict[str, Any]] = None,
            **_: Any,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stride = stride
        self.aux_head = None if aux_chs is None else FCNHead(aux_chs, num_classes)
        self._hub_mixin_config: Any = dict(self._hub_mixin_config or {}, network=type(self).__name__)
        self._set_statistics(*_statistics(encoder_config, in_chans))

    def _set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        finite = all(map(math.isfinite, (*mean, *std)))
        if not finite or not len(mean) == len(std) == self.in_chans or min(std) <= 0:
            raise ValueError(
                f'mean and std are {mean} and {std}, expected {self.in_chans} numbers in each, those of std above 0.')
        self.mean, self.std = [float(value) for value in mean], [float(value) for value in std]
        self._hub_mixin_config.update(mean=self.mean, std=self.std)

    def forward_logits(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Compute logits (N, num_classes, H, W) of padded images, whose sides are multiples of `stride`.

        The encoder's last but one feature is returned too, which the auxiliary head reads.
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
        """Compute logits at the size of the image.

        Args:
            x: Image batch (N, in_chans, H, W).

        Returns:
            Logits (N, num_classes, H, W); in training mode with an auxiliary head, a pair of them and the head's.

        Raises:
            ValueError: x is not a floating-point batch with `in_chans` channels.
        """
        check_image(x, self.in_chans, 1)
        height, width = x.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        # an exported graph holds for all sizes, so it always pads, possibly by 0
        if torch.compiler.is_compiling() or bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode='replicate')
        logits, feature = self.forward_logits(x)
        if not self.training or self.aux_head is None:
            return logits[..., :height, :width]
        aux = F.interpolate(self.aux_head(feature), size=logits.shape[-2:], mode='bilinear')
        return logits[..., :height, :width], aux[..., :height, :width]

    def train(self, mode: bool = True) -> 'SegmentationNetwork':
        """Set training mode; a fused memory raises before any module changes its mode."""
        for memory in self._memories():
            memory.train(mode)
        return super().train(mode)

    def fuse(self) -> 'SegmentationNetwork':
        """Fuse the network for inference. A fused network cannot be saved.

        The memory and timm's reparameterizable modules are fused.

        Returns:
            The network itself.
        """
        reparameterize_model(self, inplace=True)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set gradient checkpointing of the encoder's blocks and memory units."""
        raise NotImplementedError

    def init_identity(self) -> 'SegmentationNetwork':
        """Set the memory to the identity; eval outputs then equal those without memory.

        Returns:
            The network itself.
        """
        for memory in self._memories():
            memory.init_identity()
        return self

    def _memories(self) -> List[LowFrequencyMemory]:
        return [m for m in self.modules() if isinstance(m, LowFrequencyMemory)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> 'SegmentationNetwork':
        """Load a network that `save_pretrained` or `push_to_hub` wrote.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the Hub.
            **kwargs: Arguments of the Hub's `from_pretrained`, such as `revision`.

        Returns:
            The network, of whichever class was saved, in eval mode.

        Raises:
            ValueError: The files are damaged or not those of a segmentation network.
        """
        try:
            network: SegmentationNetwork = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        # a value of a wrong type can raise any of these while the network is built
        except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, UnicodeDecodeError,
                json.JSONDecodeError) as error:
            raise ValueError(
                f'{pretrained_model_name_or_path}/config.json does not describe a segmentation network ({error}): '
                'correct it, or download or save the network again.') from error
        return network

    @classmethod
    def _from_pretrained(
            cls,
            *,
            model_id: str,
            map_location: str = 'cpu',
            network: str = '',
            mean: Optional[Sequence[float]] = None,
            std: Optional[Sequence[float]] = None,
            **kwargs: Any,
    ) -> 'SegmentationNetwork':
        """Build the network that was saved, of whichever class, and load its weights."""
        download = {name: kwargs.pop(name) for name in HUB_ARGS if name in kwargs}
        classes = {c.__name__: c for c in (cls, *cls.__subclasses__())}
        if network not in classes:
            what = f'is of a {network}' if network else 'has no config.json of a segmentation network'
            raise ValueError(
                f'{model_id} {what}, expected one that {cls.__name__}.save_pretrained wrote: check the path.')
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith(IGNORED_ARGS)}
        model = classes[network](**kwargs)
        if mean is not None and std is not None:
            model._set_statistics(mean, std)
        file = Path(model_id) / 'model.safetensors'
        if not Path(model_id).is_dir():
            file = Path(hf_hub_download(model_id, file.name, **download))
        try:
            weights = load_file(file)
            model.load_state_dict(weights)
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(
                f'{file} is damaged, or of another network than its config.json describes: download or save both '
                'again.') from error
        for name, value in weights.items():
            if not value.isfinite().all():
                raise ValueError(f'{file} holds values in {name} that are not finite: its training had diverged.')
        return model.to(map_location).eval()


def _statistics(config: Optional[Dict[str, Any]], in_chans: int) -> List[List[float]]:
    """Mean and standard deviation for `in_chans` channels, adapted as timm does.

    timm sums the first convolution's weights for gray images, and repeats them for other numbers of channels.
    """
    if config:
        values = [config['mean'], config['std']]
    else:
        values = [IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD] if in_chans == 3 else [[0.5], [0.5]]
    if in_chans == 1:
        return [[sum(v) / len(v)] for v in values]
    return [[v[i % len(v)] for i in range(in_chans)] for v in values]


def create_encoder(name: str, memory: Optional[bool] = None, **kwargs: Any) -> nn.Module:
    """Build a timm backbone that returns its features, as NHWC if its `output_fmt` is.

    With `memory=True`, a network of timm gets a memory at identity, by `attach_memory`; with False, `mlfm_*` is its
    trunk alone. Other arguments are those of `timm.create_model`, of the network and of its memory, and `out_indices`.
    """
    if 'mlfm_' in name and memory is not None:
        kwargs['memory'] = memory
    if 'mlfm_' in name or not memory:
        return timm.create_model(name, features_only=True, **kwargs)
    out_indices = kwargs.pop('out_indices')
    memory_options = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith('memory_')}
    # timm's own extractors call the trunk's modules one by one, and would bypass the memory
    trunk = timm.create_model(name, **kwargs)
    encoder: Any = FeatureNet(attach_memory(trunk, **memory_options), out_indices)
    encoder.pretrained_cfg = config_of(trunk)
    return encoder
