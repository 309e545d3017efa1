"""What the segmentation networks share: padding, the auxiliary output, saving, and an encoder of timm's features."""

from pathlib import Path
from typing import Any, List, Mapping, Optional, Tuple, Union

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import reparameterize_model

from ..memory import LowFrequencyMemory, attach_memory
from ..memory.network import check_image
from ..models._create import FeatureNet
from ..models._network import refuse_misfit, weight_faults

__all__ = ['SegmentationNetwork', 'create_encoder', 'fcn_head', 'pad_to_multiple']

OTHER_WEIGHTS = 'give weights of this network, made with the same arguments'


class SegmentationNetwork(
    nn.Module,
    PyTorchModelHubMixin,
    library_name='mlfm_zoo',
    pipeline_tag='image-segmentation',
    tags=['mlfm', 'segmentation'],
):
    """A network that says for each pixel which class it is of.

    Images may have any size: they are padded at the right and the bottom to a multiple of `stride` by repeating the
    edge, and the logits are cropped to the image again.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are the Hub's: config.json has the arguments that build the
    network, model.safetensors the weights. `SegmentationNetwork.from_pretrained` makes whichever network was saved.

    Args:
        num_classes: Classes.
        in_chans: Channels of the image.
        stride: Pixels a side of one cell of the encoder's deepest map.
    """

    # any arguments, so that the Hub's mixin hands those of all networks to `_from_pretrained`
    def __init__(self, num_classes: int = 21, in_chans: int = 3, stride: int = 32, **_: Any):
        super().__init__()
        for name, value in (('num_classes', num_classes), ('in_chans', in_chans)):
            if value < 1:
                raise ValueError(f'{name} is {value}, expected 1 or more.')
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.stride = stride
        self.aux_head: Optional[nn.Module] = None
        self._hub_mixin_config: Any = dict(self._hub_mixin_config or {}, network=type(self).__name__)

    def forward_logits(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Logits of padded images.

        Args:
            x: Image batch (N, in_chans, H, W), sides multiples of `stride`.

        Returns:
            Logits (N, num_classes, H, W), and the feature that the auxiliary head reads, the encoder's last but one.
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
        """Logits at the size of the image.

        Args:
            x: Image batch (N, in_chans, H, W).

        Returns:
            Logits (N, num_classes, H, W); in training mode with an auxiliary head a pair, the second its logits.

        Raises:
            ValueError: x is no batch of floating-point images of `in_chans` channels.
        """
        check_image(x, self.in_chans, 1)
        height, width = x.shape[-2:]
        logits, feature = self.forward_logits(pad_to_multiple(x, self.stride))
        if not self.training or self.aux_head is None:
            return logits[..., :height, :width]
        aux = F.interpolate(self.aux_head(feature), size=logits.shape[-2:], mode='bilinear')
        return logits[..., :height, :width], aux[..., :height, :width]

    def train(self, mode: bool = True) -> 'SegmentationNetwork':
        """Set training mode, which a fused memory refuses before anything is changed."""
        for memory in self._memories():
            memory.train(mode)
        return super().train(mode)

    def fuse(self) -> 'SegmentationNetwork':
        """Fuse the memory, and what else of the network timm can, for inference; such a network cannot be saved.

        Returns:
            The network itself.
        """
        reparameterize_model(self, inplace=True)
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether blocks and memory units compute their insides again in the backward pass."""
        raise NotImplementedError

    def init_identity(self) -> 'SegmentationNetwork':
        """Set the memory to the identity: in eval mode the network puts out what it would without.

        Returns:
            The network itself.
        """
        for memory in self._memories():
            memory.init_identity()
        return self

    def _memories(self) -> List[LowFrequencyMemory]:
        return [m for m in self.modules() if isinstance(m, LowFrequencyMemory)]

    # Says in one sentence why weights do not fit, where torch would list every parameter.
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        if strict:
            refuse_misfit(self, state_dict, weight_faults(self.state_dict(), state_dict), OTHER_WEIGHTS)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @classmethod
    def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: Optional[str],
            cache_dir: Any,
            force_download: bool,
            local_files_only: bool,
            token: Any,
            network: str = '',
            map_location: str = 'cpu',
            **kwargs: Any,
    ) -> 'SegmentationNetwork':
        """Build the network that was saved, of whichever class, and load its weights, all of them."""
        found = [c for c in (cls, *cls.__subclasses__()) if c.__name__ == network]
        if not found:
            what = f'is of a {network}' if network else 'has no config.json of a segmentation network'
            raise ValueError(
                f'{model_id} {what}, expected one that {cls.__name__}.save_pretrained wrote: check the path.')
        for name in ('proxies', 'resume_download'):  # which older versions of the Hub's library pass on
            kwargs.pop(name, None)
        # the encoder's weights are among those saved
        model = found[0](**dict(kwargs, pretrained=False)).to(map_location)
        file = Path(model_id) / 'model.safetensors'
        if not Path(model_id).is_dir():
            file = Path(hf_hub_download(
                model_id, file.name, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token))
        try:
            weights = load_file(file, device=map_location)
        except (OSError, SafetensorError) as error:
            raise ValueError(f'{file} cannot be read ({error}): get it again.') from None
        model.load_state_dict(weights)
        return model.eval()


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad images at the right and the bottom, by repeating the edge, until their sides are multiples of a number.

    Args:
        x: Image batch (N, C, H, W).
        multiple: The number.

    Returns:
        Image batch; x itself where nothing is missing.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    # an exported graph is for all sizes, so that there it is always padded, if only by nothing
    if torch.compiler.is_compiling() or bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode='replicate')
    return x


def create_encoder(
        name: str,
        in_chans: int = 3,
        pretrained: bool = False,
        memory: Optional[bool] = None,
        **kwargs: Any,
) -> nn.Module:
    """Build a timm backbone that puts out its features.

    Args:
        name: Name that `timm.create_model` takes, with a tag if need be.
        in_chans: Channels of the image.
        pretrained: Whether to load the weights that the name's tag, or the network's default one, stands for.
        memory: Whether it has a low-frequency memory: None for networks as they are registered; False for the trunk
            alone of `mlfm_*`; True for a trunk of timm's own to get one, at identity, by `attach_memory`.
        **kwargs: Arguments of the network and of its memory, and `out_indices`.

    Returns:
        The backbone, with `feature_info`; its maps are NHWC where its `output_fmt` says so.

    Raises:
        ValueError: The network cannot have a memory, or an option is out of range.
    """
    kwargs.update(in_chans=in_chans, pretrained=pretrained)
    if 'mlfm_' in name:
        if memory is not None:
            kwargs['memory'] = memory
        return timm.create_model(name, features_only=True, **kwargs)
    if not memory:
        return timm.create_model(name, features_only=True, **kwargs)
    out_indices = kwargs.pop('out_indices')
    memory_options = {k: kwargs.pop(k) for k in list(kwargs) if k.startswith('memory_')}
    # timm's own extractors call the trunk's modules one by one, and would pass the memory by
    return FeatureNet(attach_memory(timm.create_model(name, **kwargs), **memory_options), out_indices)


def fcn_head(in_chs: int, num_classes: int) -> nn.Sequential:
    """torchvision's FCN head: a 3x3 convolution to a quarter of the channels, norm, ReLU, dropout and the score.

    Args:
        in_chs: Channels of the feature.
        num_classes: Classes.

    Returns:
        The layers.
    """
    hidden_chs = max(1, in_chs // 4)
    return nn.Sequential(
        nn.Conv2d(in_chs, hidden_chs, 3, padding=1, bias=False),
        nn.BatchNorm2d(hidden_chs),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(hidden_chs, num_classes, 1),
    )
