"""timm's configs: of the pretrained networks, made from the manifest, and of a folder that a network is saved in."""

import dataclasses
import json
from collections import deque
from pathlib import Path
from typing import Any, Dict, Optional

import timm
import torch.nn as nn
from timm.models import DefaultCfg, PretrainedCfg, save_for_hf

from .manifest import PACKAGE, Checkpoint, load_manifest

__all__ = ['default_cfgs_from_manifest', 'save_model']

# What the name of a network alone stands for: the first of these kinds that is published, and else nothing.
DEFAULT_KINDS = ('trained', 'paper', 'embedded')


def default_cfgs_from_manifest(base_cfgs: Dict[str, Dict[str, Any]]) -> Dict[str, DefaultCfg]:
    """Pretrained configs of a family, with a tag for each published checkpoint of the manifest.

    A network whose ImageNet100 weights are not published has a config without tag and without weights as its default:
    its warm starts are had by their tags only, never in the place of weights that do not exist.

    Args:
        base_cfgs: Config of each network, without the location of weights.

    Returns:
        What `timm.models.register_model` looks for in a module's `default_cfgs`.
    """
    checkpoints = [c for c in load_manifest().values() if c.published]
    default_cfgs = {}
    for model, base_cfg in base_cfgs.items():
        cfgs = {c.tag: _pretrained_cfg(c, base_cfg) for c in checkpoints if c.model == model}
        defaults = [c.tag for kind in DEFAULT_KINDS for c in checkpoints if c.model == model and c.kind == kind]
        if not defaults:
            cfgs[''] = PretrainedCfg(**base_cfg)
        default = (defaults or [''])[0]
        default_cfgs[model] = DefaultCfg(
            tags=deque([default, *(tag for tag in cfgs if tag != default)]), cfgs=cfgs,
            is_pretrained=any(cfg.has_weights for cfg in cfgs.values()))
    return default_cfgs


def save_model(
        model: nn.Module,
        folder: Path,
        model_config: Optional[Dict[str, Any]] = None,
        model_args: Optional[Dict[str, Any]] = None,
) -> None:
    """Save model.safetensors and config.json as timm does, readable by everybody, and by transformers too.

    timm says the number of classes at the top of config.json and among `model_args`; transformers 5 passes both on and
    fails, so it is left at the top only, where timm reads it as well.

    Args:
        model: A timm model.
        folder: Folder to write into.
        model_config: What config.json says beside what timm writes.
        model_args: Arguments that build the network, beside the registered ones.
    """
    save_for_hf(model, folder, model_config=model_config, model_args=model_args, safe_serialization=True)
    file = folder / 'config.json'
    config = json.loads(file.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)
    file.write_text(json.dumps(config, indent=2), encoding='utf-8')
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its files private


def _pretrained_cfg(checkpoint: Checkpoint, base_cfg: Dict[str, Any]) -> PretrainedCfg:
    location = dict(
        hf_hub_id='@'.join(filter(None, [checkpoint.hub_repo, checkpoint.commit])) or None,
        hf_hub_filename=checkpoint.file,
        file=str(PACKAGE / checkpoint.file) if checkpoint.kind == 'embedded' else None,
        url=None,
    )
    if checkpoint.kind == 'warm_start':
        # images are prepared as timm says for these weights, if they are weights that it knows
        cfg = timm.get_pretrained_cfg(f'{checkpoint.model.removeprefix("mlfm_")}.{checkpoint.tag}')
        if cfg is not None:
            return dataclasses.replace(cfg, **location)
    cfg = dict(base_cfg, num_classes=checkpoint.num_classes, license=checkpoint.license, **location)
    if checkpoint.input_size != tuple(base_cfg['input_size']):
        stride = base_cfg['input_size'][-1] // base_cfg['pool_size'][-1]
        cfg.update(input_size=checkpoint.input_size, pool_size=tuple(-(-s // stride) for s in checkpoint.input_size[1:]))
    return PretrainedCfg(**cfg)
