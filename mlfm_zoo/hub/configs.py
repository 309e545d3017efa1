"""timm's configs of the pretrained networks, made from the manifest."""

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

# What the name of a network alone stands for: the first of these kinds that is available, else nothing.
DEFAULT_KINDS = ('trained', 'paper', 'embedded')


def default_cfgs_from_manifest(base_cfgs: Dict[str, Dict[str, Any]]) -> Dict[str, DefaultCfg]:
    """Pretrained configs of a family, with a tag for each available checkpoint of the manifest.

    A network without ImageNet100 weights has a config without tag and without weights as its default:
    its warm starts are had by their tags only, never in the place of weights that do not exist.

    A manifest of one's own (`MLFM_ZOO_MANIFEST`) that cannot be read is a warning here, and an error where a checkpoint
    is asked for.

    Args:
        base_cfgs: Config of each network, without the location of weights.

    Returns:
        What `timm.models.register_model` looks for in a module's `default_cfgs`.
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
    except ManifestError as error:  # said again where checkpoints are used; networks need none
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
        # images are prepared as timm says for its weights
        timm_cfg = timm.get_pretrained_cfg(timm_name)
        assert timm_cfg is not None
        return dataclasses.replace(timm_cfg, **location)
    cfg = dict(base_cfg, num_classes=checkpoint.num_classes, license=checkpoint.license, **location)
    if checkpoint.input_size != tuple(base_cfg['input_size']):
        stride = base_cfg['input_size'][-1] // base_cfg['pool_size'][-1]
        pool_size = tuple(-(-s // stride) for s in checkpoint.input_size[1:])
        cfg.update(input_size=checkpoint.input_size, pool_size=pool_size)
    return PretrainedCfg(**cfg)
