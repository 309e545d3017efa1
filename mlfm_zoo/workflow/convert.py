"""Convert a released checkpoint to a folder that timm loads as `local-dir:FOLDER`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, Mapping, Optional, Union

from .._files import UNFINISHED, one_at_a_time, written_whole
from .._timm import save_model
from ..convert import Conversion, convert_state_dict, read_checkpoint
from ..models._network import refuse_misfit, weight_faults
from ..models.gssdnet import FixedConv2d
from .build import build_network

__all__ = ['convert_checkpoint']


def convert_checkpoint(
        path: Union[str, Path],
        output: Union[str, Path],
        model_args: Optional[Mapping[str, Any]] = None,
) -> Conversion:
    """Convert a checkpoint to a folder with `model.safetensors` and `config.json`.

    Args:
        path: The checkpoint, see `convert.read_checkpoint`.
        output: The folder to make, which must be missing or empty, except for what a killed run left. Files appear only
            when complete, config.json last.
        model_args: Arguments of the network that no checkpoint reveals, such as `thumbnail` of GSSDNet.

    Returns:
        The recognized network and its weights.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `output` exists and is not an empty folder.
        OSError: `output` cannot be written.
        ValueError: The file cannot be read or recognized, or the arguments do not fit the network.
        RuntimeError: The file lacks parameters of the recognized network, or they have other shapes.
    """
    output = Path(output)
    _refuse_others(output)
    conversion = convert_state_dict(read_checkpoint(path), model_args)
    model = build_network(conversion.architecture, conversion.model_args)
    kernels = {f'{name}.weight': m.weight for name, m in model.named_modules() if isinstance(m, FixedConv2d)}
    state_dict = {**kernels, **conversion.state_dict}  # which may lack kernels that are fixed
    faults = weight_faults(model.state_dict(), state_dict)
    refuse_misfit(model, state_dict, faults, 'get the file again, or correct the arguments')
    model.load_state_dict(state_dict)

    with tempfile.TemporaryDirectory() as made:
        save_model(model, Path(made), model_args=conversion.model_args)
        output.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(output):
            _refuse_others(output)
            (output / 'model.safetensors').unlink(missing_ok=True)
            with written_whole(output / 'config.json') as config, written_whole(output / 'model.safetensors') as file:
                shutil.copyfile(Path(made, 'model.safetensors'), file)
                shutil.copyfile(Path(made, 'config.json'), config)
    return conversion


def _refuse_others(output: Path) -> None:
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    unfinished = {name for name in names if name.startswith(UNFINISHED)}
    if unfinished:  # a run that was killed between its two files left the first one too
        names -= {'model.safetensors'}
    if output.is_file() or names - unfinished:
        raise FileExistsError(f'{output} exists and is not empty: name another folder, or remove it.')
