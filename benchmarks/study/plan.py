"""A plan of training runs: networks, with and without memory, and their settings.

A plan is a YAML file in this folder, such as imagenet100.yaml; README.md describes its parts.
"""

import bisect
import functools
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import timm
import yaml

from mlfm_zoo.workflow.cost import Cost, count_cost
from mlfm_zoo.workflow.recipe import load_recipe

# Seconds to train on one image on an RTX 3090 in mixed precision, by multiply-adds and by activations. Fitted to the
# 25 trunks of the paper's table that timm's results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv has: RegNets take
# up to 2.2 times what the fit gives, all other trunks 0.7 to 1.1 times.
SECONDS_PER_MADD = 5.5e-14
SECONDS_PER_ACTIVATION = 8.0e-11


class Job(NamedTuple):
    """One run of a plan."""
    network: str  # its name in the plan
    arm: str
    seed: int
    model: str  # registered name
    kwargs: Dict[str, Any]  # arguments of the network
    settings: Dict[str, Any]  # arguments of train.py, except for the network, the seed and the folders

    @property
    def name(self) -> str:
        return f'{self.network}-{self.arm}-seed{self.seed}'

    @property
    def key(self) -> Tuple[str, str, str]:
        """Network, arm and seed, as the CSV files have them."""
        return self.network, self.arm, str(self.seed)

    @property
    def record(self) -> Dict[str, str]:
        """What two runs of the same key must have in common to be the same run."""
        return dict(
            model=self.model, kwargs=json.dumps(self.kwargs), settings=json.dumps(self.settings, sort_keys=True))

    @property
    def cost(self) -> Cost:
        """Cost of the network for one image."""
        return count(self.model, json.dumps(self.kwargs), self.settings['img_size'], self.settings['num_classes'])

    def estimate_hours(self, images: int) -> float:
        """Estimate the hours of training on one RTX 3090, for a number of training images."""
        seconds = self.cost.madds * SECONDS_PER_MADD + self.cost.activations * SECONDS_PER_ACTIVATION
        return seconds * images * self.settings['epochs'] / 3600


class Plan(NamedTuple):
    """The runs, seed by seed, and what finished networks are tested on."""
    jobs: List[Job]
    radii: List[float]  # of low-pass filters, in cycles per image
    sizes: List[int]  # other sizes of the test images, in pixels


def read_plan(path: Path) -> Plan:
    """Read a plan, and search the widths that it leaves open."""
    plan = yaml.safe_load(path.read_text(encoding='utf-8'))
    arms: List[Tuple[str, str, str, Dict[str, Any], Dict[str, Any]]] = []
    for network, entry in plan['networks'].items():
        entry = entry or {}
        model = entry.get('model', network)
        recipe = load_recipe(model, plan['recipes']).settings if 'recipes' in plan else {}
        settings = {**recipe, **plan.get('settings', {}), **entry.get('settings', {})}
        if 'img_size' not in settings:
            settings['img_size'] = timm.get_pretrained_cfg_value(model, 'input_size')[-1]
        done: Dict[str, Dict[str, Any]] = {}
        for arm, changes in entry.get('arms', plan.get('arms', {})).items():
            kwargs = {**entry.get('kwargs', {}), **changes}
            for name, value in kwargs.items():
                if isinstance(value, dict):
                    target = Job(network, arm, 0, model, done[value['match']], settings).cost.madds
                    kwargs[name] = match_width(model, kwargs, name, settings, target)
            done[arm] = kwargs
            arms.append((network, arm, model, kwargs, settings))
    jobs = [Job(network, arm, seed, *rest) for seed in plan['seeds'] for network, arm, *rest in arms]
    return Plan(jobs, sorted(map(float, plan.get('radii', []))), sorted(plan.get('sizes', [])))


@functools.lru_cache(maxsize=None)
def count(model: str, kwargs: str, img_size: int, num_classes: int) -> Cost:
    """Cost of a network for one image; `kwargs` is JSON, which can be a cache key."""
    return count_cost(model, (3, img_size, img_size), num_classes=num_classes, **json.loads(kwargs))


def match_width(model: str, kwargs: Dict[str, Any], name: str, settings: Dict[str, Any], madds: int) -> Any:
    """Find the width at which a network's multiply-adds are nearest to a number.

    Candidates are 1 to 4 times `kwargs[name]['start']`, a width or a list of widths that grow together, in steps of one
    percent of it. Whole numbers stay whole.
    """
    start = kwargs[name]['start']

    def width(step: int) -> Any:
        if isinstance(start, list):
            return [round(channels * step / 100) for channels in start]
        return round(start * step / 100, None if isinstance(start, int) else 4)

    def madds_of(step: int) -> int:
        arguments = json.dumps({**kwargs, name: width(step)})
        return count(model, arguments, settings['img_size'], settings['num_classes']).madds

    steps = range(100, 401)
    above = bisect.bisect_left(steps, madds, key=madds_of)  # networks round widths, but a larger one never costs less
    return width(min(steps[max(above - 1, 0):above + 1], key=lambda step: abs(madds_of(step) - madds)))


def share(jobs: Sequence[Job], number: int, of: int) -> List[Job]:
    """The runs of process `number` (from 1) of `of`, in the order of the plan.

    All processes have about the same work. The largest runs are dealt first, each to the process with the least work so
    far. All processes come to the same result on their own, so they need not talk to each other.
    """
    work, mine = [0.0] * of, set()
    for job in sorted(jobs, key=lambda job: job.estimate_hours(1), reverse=True):
        least = work.index(min(work))
        work[least] += job.estimate_hours(1)
        if least == number - 1:
            mine.add(job.key)
    return [job for job in jobs if job.key in mine]
