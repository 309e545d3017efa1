"""timm's pretrained configs, made from the manifest."""

import dataclasses
import functools
import warnings
from collections import deque
from typing import Any, Dict, List

import timm
from timm.models import DefaultCfg, PretrainedCfg

from .manifest import PACKAGE, Checkpoint, ManifestError, load_manifest, own_checkpoints
from .released import source_url

__all__ = ['default_cfgs_from_manifest']

# Kinds of default weights, those of a network's name without a tag: the first of these that is available.
DEFAULT_KINDS = ('trained', 'paper', 'embedded')


def default_cfgs_from_manifest(base_cfgs: Dict[str, Dict[str, Any]]) -> Dict[str, DefaultCfg]:
    """Pretrained configs of a family, with a tag for each available checkpoint.

    A network without such weights has a default config without tag and weights. Its warm starts are available only by
    their tags, so that they never stand in for trained weights.

    If the manifest that `MLFM_ZOO_MANIFEST` names cannot be read, this warns; loading a checkpoint then raises.

    Args:
        base_cfgs: Config of each network, without the location of weights.

    Returns:
        The `default_cfgs` that `timm.models.register_model` looks for in a module.
    """
    checkpoints = [c for c in _known_at_import() if c.available and c.memory]
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


@functools.lru_cache(maxsize=1)
def _known_at_import() -> List[Checkpoint]:
    try:
        return list(load_manifest().values())
    except ManifestError as error:  # networks need no manifest; loading a checkpoint raises this error again
        warnings.warn(f'{error} Until then no weights can be loaded.', stacklevel=2)
        return list(own_checkpoints().values())


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
