"""The gate that learns which of the 192 coefficients to use (paper, section 3.3)."""

from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional, Tuple, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.task import ClassificationTask

from .._extras import require_matplotlib
from .._files import written_whole

__all__ = ['ChannelGate', 'GateTask', 'draw_open', 'gate_of', 'gated_stem', 'share_open']


class ChannelGate(nn.Module):
    """Opens or closes each channel, for each image.

    The mean over positions passes a 1x1 convolution, a norm, a ReLU, and a grouped convolution with two outputs per
    channel: off and on. In training the decision is drawn by a straight-through Gumbel softmax. In eval mode the larger
    value decides, so outputs are deterministic; the released code draws here too. The norm sees one value per channel
    and image, so a training batch needs two images.

    Attributes:
        penalty: Mean number of open channels over the images of the last training batch, with a gradient; None in eval
            mode. The paper's loss is cross entropy plus a factor times this.

    Args:
        num_chs: Channels.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Examples:
        >>> gate = ChannelGate(24)
        >>> gate(torch.randn(2, 24, 8, 8)).shape, bool(0 <= gate.penalty <= 24)
        (torch.Size([2, 24, 8, 8]), True)
    """

    def __init__(self, num_chs: int = 192, device: Any = None, dtype: Any = None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(num_chs, num_chs, 1, **dd)
        self.norm = nn.BatchNorm2d(num_chs, **dd)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(num_chs, 2 * num_chs, 1, groups=num_chs, **dd)
        self.penalty: Optional[torch.Tensor] = None
        for conv, off, on in ((self.conv1, 0, 0), (self.conv2, 0.1, 2)):
            nn.init.normal_(conv.weight, std=0.001)
            assert conv.bias is not None
            nn.init.constant_(conv.bias[0::2], off)
            nn.init.constant_(conv.bias[1::2], on)

    def decide(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 for open and 0 for closed channels of x (N, C, H, W): (N, C, 1, 1)."""
        pair = self.conv2(self.act(self.norm(self.conv1(x.mean((2, 3), keepdim=True)))))
        pair = pair.flatten(1).unflatten(1, (-1, 2))
        if self.training:
            return F.gumbel_softmax(pair.float(), hard=True)[..., 1, None, None].to(x.dtype)
        return (pair[..., 1] > pair[..., 0])[..., None, None].to(x.dtype)

    def __getstate__(self) -> Dict[str, Any]:
        """Leave the penalty, which belongs to one batch, out of copies and pickles."""
        return dict(self.__dict__, penalty=None)

    def train(self, mode: bool = True) -> 'ChannelGate':
        """Set training mode; without it there is no penalty."""
        if not mode:
            self.penalty = None
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Close channels of x (N, C, H, W)."""
        decision = self.decide(x)
        if self.training and not torch.jit.is_scripting():
            self.penalty = decision.sum(1).mean()
        return x * decision


def gated_stem(model: nn.Module) -> Tuple[nn.Module, ChannelGate]:
    """Find a network's stem (an identity if it takes coefficients) and its gate."""
    for module in model.modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], ChannelGate):
            return module[0], module[1]
    raise ValueError('The network has no gate: give one that was built with a gate.')


def gate_of(model: nn.Module) -> ChannelGate:
    """Find the gate of a network.

    Args:
        model: A network that was built with a gate.

    Returns:
        The gate.

    Raises:
        ValueError: There is none.

    Examples:
        >>> model = mlfm_zoo.dct.to_dct(timm.create_model('test_resnet'), '192', gate=True)
        >>> gate_of(model).conv1.in_channels
        192
    """
    return gated_stem(model)[1]


class GateTask(ClassificationTask):
    """timm task for the paper's loss: cross entropy plus a penalty for open channels.

    Args:
        model: A network with a gate.
        criterion: Loss of the classifier.
        penalty: Factor of the penalty, a loss for each open channel.
        **kwargs: As `timm.task.ClassificationTask`.

    Raises:
        ValueError: The network has no gate.

    Examples:
        >>> model = mlfm_zoo.dct.to_dct(timm.create_model('test_resnet', num_classes=10), '192', gate=True)
        >>> task = GateTask(model, nn.CrossEntropyLoss(), penalty=0.1)
        >>> sorted(task(torch.randn(2, 3, 128, 128), torch.tensor([3, 7])))
        ['loss', 'open_channels', 'output']
    """

    def __init__(self, model: nn.Module, criterion: Callable[..., torch.Tensor], penalty: float, **kwargs: Any):
        super().__init__(model, criterion, **kwargs)
        self.penalty = penalty
        self._gate = [gate_of(model)]  # in a list, so that it does not become a child

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Compute the loss.

        Args:
            input: Batch of the network's input.
            target: Its labels.

        Returns:
            'loss'; 'output', the logits; in training mode 'open_channels', the mean number of open channels.
        """
        result = super().forward(input, target)
        open_channels = self._gate[0].penalty
        if open_channels is not None:
            result.update(loss=result['loss'] + self.penalty * open_channels, open_channels=open_channels.detach())
        return result


@torch.inference_mode()
def share_open(model: nn.Module, loader: Iterable[Any]) -> torch.Tensor:
    """Measure how often each channel is open; only the stem and the gate run.

    Args:
        model: A network with a gate, which runs in eval mode; its mode is restored.
        loader: Batches of the network's input, alone or followed by their labels.

    Returns:
        The share of images for which each channel is open (C,), from 0 to 1.

    Raises:
        ValueError: The network has no gate, or there is no image.

    Examples:
        >>> model = mlfm_zoo.dct.to_dct(timm.create_model('test_resnet'), '192', gate=True)
        >>> share_open(model, [torch.randn(2, 3, 128, 128)]).shape
        torch.Size([192])
    """
    stem, gate = gated_stem(model)
    training = gate.training
    gate.eval()
    images, total = 0, torch.zeros(gate.conv1.in_channels, dtype=torch.float64)
    try:
        for batch in loader:
            x = batch if torch.is_tensor(batch) else batch[0]
            total += gate.decide(stem(x.to(gate.conv1.weight.device)))[:, :, 0, 0].double().sum(0).cpu()
            images += len(x)
    finally:
        gate.train(training)
    if not images:
        raise ValueError('There is no image to ask the gate about: give a loader that has some.')
    return total / images


def draw_open(share: torch.Tensor, file: Union[str, Path]) -> None:
    """Draw how often each of the 192 channels is open, like the paper's figure 5.

    Args:
        share: What `share_open` returns for a network on all 192 channels.
        file: PNG file to write.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: There are not 192 channels.

    Examples:
        >>> draw_open(torch.rand(192), 'open.png')
    """
    if share.shape != (192,):
        raise ValueError(f'There are {len(share)} channels, expected all 192: give the shares of such a network.')
    plt = require_matplotlib()
    figure, grid = plt.subplots(1, 3, figsize=(10, 3.6), layout='constrained')
    for axes, name, plane in zip(grid, ('Y', 'Cb', 'Cr'), 100 * share.reshape(3, 8, 8)):
        axes.imshow(plane.tolist(), vmin=0, vmax=100)
        for i, value in enumerate(plane.flatten().tolist()):
            axes.text(i % 8, i // 8, f'{value:.0f}', ha='center', va='center', fontsize=6,
                      color='white' if value < 60 else 'black')
        axes.set(title=name, xlabel='horizontal frequency', xticks=range(8), yticks=range(8))
    grid[0].set_ylabel('vertical frequency')
    figure.colorbar(grid[0].images[0], ax=list(grid), label='images for which it is open, %')
    figure.suptitle(f'{share.sum():.1f} of 192 coefficients open on average')
    try:
        with written_whole(Path(file)) as unfinished:
            figure.savefig(unfinished, dpi=100, format='png')
    finally:
        plt.close(figure)
