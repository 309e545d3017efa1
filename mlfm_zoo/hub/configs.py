"""timm's pretrained configs, made from the manifest."""

import dataclasses
from collections import deque
from typing import Any, Dict

import timm
from timm.models import DefaultCfg, PretrainedCfg

from .manifest import PACKAGE, Checkpoint, load_manifest
from .released import source_url

__all__ = ['default_cfgs_from_manifest']

# Kinds of default weights, those of a network's name without a tag: the first of these that is available.
DEFAULT_KINDS = ('trained', 'paper', 'embedded')


def default_cfgs_from_manifest(base_cfgs: Dict[str, Dict[str, Any]]) -> Dict[str, DefaultCfg]:
    """timm's `default_cfgs` of a family, with a tag for each available checkpoint.

    `base_cfgs` has the config of each network, without the location of weights. A network without such weights has a
    default config without tag and weights. Its warm starts are available only by their tags, so that they never stand
    in for trained weights.
    """
    available = [c for c in load_manifest().values() if c.available and c.memory]
    default_cfgs = {}
    for model, base_cfg in base_cfgs.items():
        checkpoints = [c for c in available if c.model == model]
        cfgs = {c.tag: _pretrained_cfg(c, base_cfg) for c in checkpoints}
        default = next((c.tag for kind in DEFAULT_KINDS for c in checkpoints if c.kind == kind), '')
        cfgs.setdefault(default, PretrainedCfg(**base_cfg))
        default_cfgs[model] = DefaultCfg(
            tags=deque([default, *(tag for tag in cfgs if tag != default)]), cfgs=cfgs, is_pretrained=bool(checkpoints))
    return default_cfgs


def _pretrained_cfg(checkpoint: Checkpoint, base_cfg: Dict[str, Any]) -> PretrainedCfg:
    location: Dict[str, Any] = dict(
        hf_hub_id='@'.join(filter(None, [checkpoint.hub_repo, checkpoint.commit])) or None,
        hf_hub_filename=checkpoint.file,
        file=str(PACKAGE / checkpoint.file) if checkpoint.file and 'package' in checkpoint.places else None,
        url=source_url(checkpoint) if 'authors' in checkpoint.places else None,
    )
    timm_name = f'{checkpoint.model.removeprefix("mlfm_")}.{checkpoint.tag}'
    if checkpoint.kind == 'warm_start' and timm.is_model_pretrained(timm_name):
        # images are prepared as for timm's weights
        timm_cfg = timm.get_pretrained_cfg(timm_name)
        assert timm_cfg is not None
        return dataclasses.replace(timm_cfg, **location)
    cfg = dict(base_cfg, num_classes=checkpoint.num_classes, license=checkpoint.license, **location)
    if checkpoint.label_names:
        cfg.update(label_names=tuple(checkpoint.label_names), label_descriptions=checkpoint.label_names)
    if checkpoint.input_size != tuple(base_cfg['input_size']):
        stride = base_cfg['input_size'][-1] // base_cfg['pool_size'][-1]
        pool_size = tuple(-(-s // stride) for s in checkpoint.input_size[1:])
        cfg.update(input_size=checkpoint.input_size, pool_size=pool_size)
    return PretrainedCfg(**cfg)
