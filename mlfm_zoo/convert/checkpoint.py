"""From a released checkpoint of any known form to a folder that timm loads.

Each form has a file of its own, which recognises its networks by names, shapes and fixed values. What it makes of a
checkpoint is checked here against the registered network, name by name and shape by shape, before anything is written.
"""

import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Mapping, Optional, Union

import safetensors.torch
import timm
import torch

from .._timm import save_model
from .authors import convert_authors
from .dctnet import convert_dctnet
from .form import Conversion, StateDict, some
from .gssdnet import convert_gssdnet

__all__ = ['convert_checkpoint', 'convert_state_dict', 'read_checkpoint']

# Left in the released files by a profiler (counters) and by pytorch_wavelets (the fixed Haar filters).
LEFTOVERS = re.compile(r'(^|\.)(total_ops|total_params|h[01]_(col|row))$')


def read_checkpoint(path: Union[str, Path]) -> StateDict:
    """Read the parameters of a checkpoint file, pickles with `weights_only=True`.

    Args:
        path: A .safetensors file, or a file written by `torch.save` that holds a state dict, alone or under
            'state_dict' or 'model'.

    Returns:
        The parameters without a 'module.' prefix and without leftovers of profilers and wavelet filters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds more than tensors and plain values, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint at {path}: give the path of a file.')
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(file.file_size for file in archive.infolist()) > size:
                    raise ValueError('packed: torch.save never does, and a small file may fill the memory')
        if path.suffix == '.safetensors':
            checkpoint: Any = safetensors.torch.load_file(path)
        else:
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except PermissionError:
        raise ValueError(f'{path} may not be read: change its permissions.') from None
    except pickle.UnpicklingError as error:
        if 'weights_only' in str(error):
            raise ValueError(
                f'{path} is a pickle that holds objects other than tensors and plain values, and is not loaded because '
                'that could run code: save its state dict alone and convert that.') from None
        raise ValueError(f'{path} is damaged or no PyTorch checkpoint: get the file again.') from None
    except Exception:  # of any kind: the unpickler trusts its file, and fails wherever that leads it
        raise ValueError(f'{path} is damaged or no PyTorch checkpoint: get the file again.') from None

    for key in ('state_dict', 'model'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not any(torch.is_tensor(v) for v in checkpoint.values()):
        raise ValueError(f'{path} holds no state dict, expected one, alone or under "state_dict" or "model".')
    tensors = {str(k).removeprefix('module.'): v for k, v in checkpoint.items() if torch.is_tensor(v)}
    tensors = {k: v for k, v in tensors.items() if not LEFTOVERS.search(k)}
    for name, tensor in tensors.items():
        if not re.fullmatch(r'[!-~]{1,200}', name):
            raise ValueError(f'{path} holds a parameter named {name[:40]!r}, expected letters, digits and dots.')
        counter = name.endswith('num_batches_tracked')
        if tensor.layout != torch.strided or tensor.is_floating_point() == counter or tensor.is_quantized:
            raise ValueError(f'{path} holds {name} as {tensor.dtype}, expected dense numbers of a floating-point type.')
        if tensor.device.type != 'cpu' or tensor.nbytes > size:  # no values at all, or one value over and over
            raise ValueError(f'{path} holds {name} of shape {tuple(tensor.shape)}, but not that many values.')
        if not counter and not tensor.isfinite().all():
            raise ValueError(f'{path} holds values in {name} that are not finite: the training had diverged.')
    return tensors


def convert_state_dict(state_dict: StateDict, model_args: Optional[Mapping[str, Any]] = None) -> Conversion:
    """Recognise a network and rename its parameters.

    Args:
        state_dict: Parameters under their released names, as `read_checkpoint` returns them.
        model_args: Arguments of the network that no checkpoint tells, such as `thumbnail` of GSSDNet.

    Returns:
        The registered network, the arguments that build it, and its weights.

    Raises:
        ValueError: The network, its width or a parameter was not recognised, or an argument does not fit it.
    """
    model_args = dict(model_args or {})
    conversion = convert_authors(state_dict) or convert_gssdnet(state_dict, model_args)
    conversion = conversion or convert_dctnet(state_dict, model_args)
    if conversion is None:
        raise ValueError(
            f'The network was not recognised by its parameters ({some(state_dict)}): this converter knows the '
            "authors' MobileNetV2 of any width, with memory or without, their ResNet10, 18 and 34, GSSDNet, and "
            'ResNet50 and MobileNetV2 on DCT coefficients.')
    for name, value in model_args.items():
        if conversion.model_args.setdefault(name, value) != value:
            raise ValueError(
                f'{name}={value!r} was given, but the checkpoint has {name}={conversion.model_args[name]!r}: leave it '
                'out.')
    _check(conversion)
    return conversion


def convert_checkpoint(
        path: Union[str, Path],
        output: Union[str, Path],
        model_args: Optional[Mapping[str, Any]] = None,
) -> Conversion:
    """Convert a released checkpoint into a folder with `model.safetensors` and `config.json`.

    Args:
        path: The checkpoint, see `read_checkpoint`.
        output: The folder to make, which must not exist or be empty. Its files appear only when they are whole,
            config.json last.
        model_args: As `convert_state_dict`.

    Returns:
        What was recognised.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `output` is there already.
        OSError: `output` cannot be written.
        ValueError: The file was not read or not recognised.
    """
    output = Path(output)
    if output.is_file() or output.is_dir() and any(output.iterdir()):
        raise FileExistsError(f'{output} is there already and not empty: name another folder, or remove it.')
    conversion = convert_state_dict(read_checkpoint(path), model_args)
    model = timm.create_model(conversion.architecture, **conversion.model_args)
    model.load_state_dict(conversion.state_dict)

    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{output.name}.', dir=output.parent) as unfinished:
        save_model(model, Path(unfinished), model_args=conversion.model_args)
        output.mkdir(exist_ok=True)
        for name in ('model.safetensors', 'config.json'):
            Path(unfinished, name).replace(output / name)
    return conversion


def _check(conversion: Conversion) -> None:
    """Every parameter of the registered network is there, of its shape, and none is left over."""
    try:
        model = timm.create_model(conversion.architecture, device='meta', **conversion.model_args)
    except TypeError:  # options that the network lacks
        raise ValueError(f'The arguments {conversion.model_args} do not fit {conversion.architecture}.') from None
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    given = {k: tuple(v.shape) for k, v in conversion.state_dict.items() if not k.endswith('num_batches_tracked')}
    faults = [f'{k} is missing' for k in expected if k not in given]
    faults += [f'{k} is left over' for k in given if k not in expected]
    faults += [f'{k} is {given[k]}, not {expected[k]}' for k in expected if k in given and given[k] != expected[k]]
    if faults:
        raise ValueError(
            f'The checkpoint looks like {conversion.architecture} with {conversion.model_args}, but {some(faults)}.')
    for name in model.state_dict():  # files written by hand lack the counters, which nothing in eval mode reads
        if name.endswith('num_batches_tracked'):
            conversion.state_dict.setdefault(name, torch.tensor(0))
