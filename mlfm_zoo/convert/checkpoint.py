"""Read released checkpoints, and convert them to this package's networks.

Each released form has its own file, which recognizes its networks by names, shapes and fixed values. No network is
built here: the network's `load_state_dict` checks whether the parameters are complete.
"""

import pickle
import re
from pathlib import Path
from typing import Any, Mapping, Optional, Union

import safetensors.torch
import torch

from .._files import read_pickle
from .authors import convert_authors
from .dctnet import convert_dctnet
from .form import Conversion, StateDict
from .gssdnet import convert_gssdnet

__all__ = ['convert_state_dict', 'read_checkpoint']

# Keys under which a checkpoint may hold its state dict; averaged weights come first, as in timm.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')

# Left in the released files by a profiler (counters) and by pytorch_wavelets (the fixed Haar filters).
LEFTOVERS = re.compile(r'(^|\.)(total_ops|total_params|h[01]_(col|row))$')


def read_checkpoint(path: Union[str, Path]) -> StateDict:
    """Read the parameters of a checkpoint file, pickles with `weights_only=True`.

    Args:
        path: A .safetensors file, or a file written by `torch.save` that holds a state dict, alone or under
            one of `WRAPPERS`.

    Returns:
        The parameters without a 'module.' prefix and without leftovers of profilers and wavelet filters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds more than tensors and plain values, or holds no state dict.

    Examples:
        >>> torch.save({'state_dict': {'module.fc.weight': torch.ones(10, 4)}}, 'weights.pth')
        >>> list(read_checkpoint('weights.pth'))
        ['fc.weight']
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a file.')
    try:
        size = path.stat().st_size
        checkpoint: Any = safetensors.torch.load_file(path) if path.suffix == '.safetensors' else read_pickle(path)
    except PermissionError as error:
        raise ValueError(f'{path} may not be read: change its permissions.') from error
    except Exception as error:  # of any kind: the unpickler trusts its file and can fail anywhere
        if isinstance(error, pickle.UnpicklingError) and 'weights_only' in str(error):
            raise ValueError(
                f'{path} is a pickle that holds objects other than tensors and plain values, and is not loaded because '
                'that could run code: save its state dict alone and convert that.') from error
        raise ValueError(f'{path} is damaged or no PyTorch checkpoint: get the file again.') from error

    if isinstance(checkpoint, dict):
        wrapped = (checkpoint.get(key) for key in WRAPPERS)
        checkpoint = next((value for value in wrapped if isinstance(value, dict)), checkpoint)
    if not isinstance(checkpoint, dict) or not any(torch.is_tensor(v) for v in checkpoint.values()):
        raise ValueError(f'{path} holds no state dict, expected one, alone or under "state_dict" or "model".')
    tensors = {str(k).removeprefix('module.'): v for k, v in checkpoint.items() if torch.is_tensor(v)}
    tensors = {k: v for k, v in tensors.items() if not LEFTOVERS.search(k)}
    for name, tensor in tensors.items():
        if not re.fullmatch(r'[!-~]{1,200}', name):
            raise ValueError(f'{path} holds a parameter named {name[:40]!r}, expected letters, digits and dots.')
        counter = name.endswith('num_batches_tracked')
        dense = tensor.layout == torch.strided and not tensor.is_quantized and tensor.is_floating_point() != counter
        # a tensor on the meta device, or of one value expanded, claims values that the file does not have
        if not dense or tensor.device.type != 'cpu' or tensor.nbytes > size:
            raise ValueError(
                f'{path} holds {name} as {tensor.dtype} of shape {tuple(tensor.shape)}, expected dense numbers of a '
                'floating-point type that are all in the file.')
        if not counter and not tensor.isfinite().all():
            raise ValueError(f'{path} holds values in {name} that are not finite: the training had diverged.')
    return tensors


def convert_state_dict(state_dict: StateDict, model_args: Optional[Mapping[str, Any]] = None) -> Conversion:
    """Recognize a network and rename its parameters.

    Args:
        state_dict: Parameters under their released names, as `read_checkpoint` returns them.
        model_args: Arguments of the network that no checkpoint reveals, such as `thumbnail` of GSSDNet.

    Returns:
        The registered network, the arguments that build it, and its weights. Fixed kernels of a GSSDNet may be missing.

    Raises:
        ValueError: The network, its width or a parameter was not recognized, or an argument contradicts the file.

    Examples:
        >>> weights = {name: torch.zeros(1, 2, 3, 3) for name in ('fc.weight', 'conv.weight')}
        >>> convert_state_dict(weights)
        Traceback (most recent call last):
        ValueError: The network was not recognized by its parameters (fc.weight, conv.weight): ...
    """
    model_args = dict(model_args or {})
    try:
        conversion = (
            convert_authors(state_dict) or convert_gssdnet(state_dict, model_args)
            or convert_dctnet(state_dict, model_args))
    except LookupError as error:
        raise ValueError(
            f'The checkpoint looks like a known network, but lacks a parameter or a dimension of one ({error}): get '
            'the file again.') from error
    if conversion is None:
        raise ValueError(
            f'The network was not recognized by its parameters ({", ".join([*state_dict][:3])}): this converter '
            "knows the authors' MobileNetV2 of any width, with memory or without, their ResNet10, 18 and 34, GSSDNet, "
            'and ResNet50 and MobileNetV2 on DCT coefficients.')
    for name, value in model_args.items():
        if conversion.model_args.setdefault(name, value) != value:
            raise ValueError(
                f'{name}={value!r} was given, but the checkpoint has {name}={conversion.model_args[name]!r}: leave it '
                'out.')
    return conversion
