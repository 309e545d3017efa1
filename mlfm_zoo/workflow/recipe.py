"""The commands that train a network on ImageNet100 with timm's train.py, from the settings in recipes/*.yaml."""

import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import timm
import yaml

__all__ = ['Recipe', 'load_recipe', 'training_command']

RECIPES = Path(__file__).with_name('recipes')

# Where one network of a family was trained in another way.
EXCEPTIONS = {'mlfm_resnet50': {'batch_size': 256}}


class Recipe(NamedTuple):
    """Settings of one network.

    Attributes:
        path: The family's file for train.py's `--config`.
        overrides: Settings in which this network differs from the file.
        settings: All settings.
    """
    path: Path
    overrides: Dict[str, Any]
    settings: Dict[str, Any]

    @property
    def global_batch_size(self) -> int:
        """Images an update, over all processes and accumulated steps."""
        return self.settings['batch_size'] * self.settings.get('grad_accum_steps', 1)


def load_recipe(model: str) -> Recipe:
    """Read the recipe of a network.

    Args:
        model: Registered name.

    Returns:
        The settings of its family, with its own exceptions.

    Raises:
        ValueError: There is no such network, or no recipe for it.
    """
    families = sorted((path.stem for path in RECIPES.glob('*.yaml')), key=len, reverse=True)
    family = next((f for f in families if re.match(rf'mlfm_{f}', model)), None)
    if family is None or not timm.is_model(model):
        raise ValueError(f'There is no recipe for {model}: give one of timm.list_models("mlfm_*").')
    path = RECIPES / f'{family}.yaml'
    overrides = EXCEPTIONS.get(model, {})
    return Recipe(path, overrides, {**yaml.safe_load(path.read_text(encoding='utf-8')), **overrides})


def training_command(
        model: str,
        data: str,
        memory: bool = True,
        seed: int = 42,
        gpus: int = 1,
        nodes: int = 1,
        script: str = 'train.py',
) -> str:
    """The command that trains a network on one or many GPUs, the batch of an update being the recipe's on any number.

    Args:
        model: Registered name.
        data: Prepared ImageNet100 folder.
        memory: Whether the network has its memory; without, it is the baseline.
        seed: Seed of the run.
        gpus: GPUs of each machine.
        nodes: Machines.
        script: Path of timm's train.py.

    Returns:
        One line for a shell.

    Raises:
        ValueError: There is no recipe, or its batch cannot be divided by the number of GPUs.
    """
    recipe = load_recipe(model)
    processes = gpus * nodes
    overrides = dict(recipe.overrides)
    batch_size, steps = recipe.settings['batch_size'], recipe.settings.get('grad_accum_steps', 1)
    sync = False
    if processes > 1 and steps % processes == 0:
        overrides['grad_accum_steps'] = steps // processes
    elif processes > 1 and steps == 1 and batch_size % processes == 0:
        overrides['batch_size'] = batch_size // processes
        sync = True  # norms see the recipe's batch, not a part of it
    elif processes > 1:
        raise ValueError(
            f'{processes} GPUs cannot share the batch of {recipe.global_batch_size} of {model} evenly: take a number '
            f'that divides {batch_size if steps == 1 else steps}.')
    launcher = ['python', '-m', 'mlfm_zoo', 'run']
    if processes > 1:
        launcher = ['torchrun', f'--nproc-per-node={gpus}', '-m', 'mlfm_zoo', 'run']
    if nodes > 1:
        launcher[1:1] = [f'--nnodes={nodes}', '--rdzv-backend=c10d', '--rdzv-endpoint=HOST:29500']
    experiment = f'{model}-{"memory" if memory else "baseline"}-seed{seed}'
    arguments: List[str] = [
        script, '--config', str(recipe.path), '--model', model, '--data-dir', data, '--seed', str(seed),
        '--experiment', experiment]
    for name, value in overrides.items():
        arguments += [f'--{name.replace("_", "-")}', str(value)]
    if sync:
        arguments.append('--sync-bn')
    if not memory:
        arguments += ['--model-kwargs', 'memory=False']
    return shlex.join([*launcher, *arguments])
