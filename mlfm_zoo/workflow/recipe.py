"""Commands that train a network with timm's train.py, from recipes/*.yaml.

A file is named after a family of networks and, unless for ImageNet100, the data: resnet.yaml, gssdnet-mnist.yaml.
"""

import shlex
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import timm
import yaml

__all__ = ['Recipe', 'load_recipe', 'training_command']

RECIPES = Path(__file__).with_name('recipes')

# Data that recipes are for, and their names. The default of a family is the first one that it has a file for.
DATASETS = {'imagenet100': 'ImageNet100', 'imagenet': 'ImageNet-1k', 'cifar100': 'CIFAR-100', 'mnist': 'MNIST'}

# Networks with settings that differ from the rest of their family.
EXCEPTIONS = {'mlfm_resnet50': {'batch_size': 256}}


class Recipe(NamedTuple):
    """Settings of one network.

    Attributes:
        path: The family's file for train.py's `--config`.
        dataset: The data, one of `DATASETS`.
        overrides: Settings in which this network differs from the file.
        settings: All settings.
    """
    path: Path
    dataset: str
    overrides: Dict[str, Any]
    settings: Dict[str, Any]

    @property
    def global_batch_size(self) -> int:
        """Images per update, over all processes and accumulated steps."""
        return self.settings['batch_size'] * self.settings.get('grad_accum_steps', 1)


def load_recipe(model: str, dataset: Optional[str] = None) -> Recipe:
    """Read the recipe of a network.

    Args:
        model: Registered name.
        dataset: The data, one of `DATASETS`; the family's default if None.

    Returns:
        The settings of its family, with those that differ for this network.

    Raises:
        ValueError: There is no such network, or no recipe for it on these data.

    Examples:
        >>> load_recipe('mlfm_resnet50').global_batch_size
        256
    """
    files: Dict[str, Path] = {}
    for path in RECIPES.glob('*.yaml'):
        family, _, data = path.stem.partition('-')
        if timm.is_model(model) and model.startswith(family if family == 'gssdnet' else f'mlfm_{family}'):
            files[data or 'imagenet100'] = path
    if not files:
        raise ValueError(f'There is no recipe for {model}: give one of timm.list_models(["mlfm_*", "gssdnet_*"]).')
    known = [data for data in DATASETS if data in files]
    dataset = dataset or known[0]
    if dataset not in known:
        raise ValueError(f'There is no recipe for {model} on {dataset}, expected {" or ".join(known)}.')
    overrides = EXCEPTIONS.get(model, {})
    settings = yaml.safe_load(files[dataset].read_text(encoding='utf-8'))
    return Recipe(files[dataset], dataset, overrides, {**settings, **overrides})


def training_command(
        model: str,
        data: str,
        memory: Optional[bool] = True,
        seed: int = 42,
        gpus: int = 1,
        nodes: int = 1,
        script: str = 'train.py',
        dataset: Optional[str] = None,
) -> str:
    """Make a training command with the recipe's global batch on any number of GPUs.

    Args:
        model: Registered name.
        data: Folder of the data.
        memory: Whether the network has its memory; without, it is the baseline. None for networks that never have one.
        seed: Seed of the run.
        gpus: GPUs of each machine.
        nodes: Machines.
        script: Path of timm's train.py.
        dataset: As `load_recipe`.

    Returns:
        One line for a shell.

    Raises:
        ValueError: There is no recipe, or its batch cannot be divided by the number of GPUs.

    Examples:
        >>> training_command('mlfm_resnet50', 'IMAGENET100', memory=False)
        'mlfm-zoo run train.py --config ...resnet.yaml --model mlfm_resnet50 ... --model-kwargs memory=False'
    """
    recipe = load_recipe(model, dataset)
    processes = gpus * nodes
    batch_size, steps = recipe.settings['batch_size'], recipe.settings.get('grad_accum_steps', 1)
    launcher, settings = ['mlfm-zoo', 'run'], dict(recipe.overrides)
    flags = ['--model-kwargs', 'memory=False'] if memory is False else []
    if processes > 1:
        machines = [f'--nnodes={nodes}', '--rdzv-backend=c10d', '--rdzv-endpoint=HOST:29500'] if nodes > 1 else []
        launcher = ['torchrun', *machines, f'--nproc-per-node={gpus}', '-m', 'mlfm_zoo', 'run']
        if steps % processes == 0:
            settings['grad_accum_steps'] = steps // processes
        elif steps == 1 and batch_size % processes == 0:
            settings['batch_size'] = batch_size // processes
            flags.insert(0, '--sync-bn')  # norms see the recipe's batch, not a part of it
        else:
            raise ValueError(
                f'{processes} GPUs cannot share the batch of {recipe.global_batch_size} of {model} evenly: take a '
                f'number that divides {batch_size if steps == 1 else steps}.')
    kind = recipe.dataset if memory is None else 'memory' if memory else 'baseline'
    return shlex.join([
        *launcher, script, '--config', str(recipe.path), '--model', model, '--data-dir', data, '--seed', str(seed),
        '--experiment', f'{model}-{kind}-seed{seed}',
        *(part for name, value in settings.items() for part in (f'--{name.replace("_", "-")}', str(value))), *flags])
