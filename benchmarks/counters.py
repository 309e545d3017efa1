"""Compare counters of multiply-adds: torch's own, fvcore, torchinfo and ptflops.

    pip install fvcore torchinfo ptflops
    python benchmarks/counters.py [NETWORK ...]

Prints the table of docs/models.md: G multiply-adds of one image of each network's own size.
"""

import contextlib
import io
import logging
import sys
import warnings
from typing import Dict

import timm
import torch
from fvcore.nn import FlopCountAnalysis
from ptflops import get_model_complexity_info
from torchinfo import summary

import mlfm_zoo
from mlfm_zoo.workflow.cost import count_cost

NETWORKS = (
    'mlfm_resnet18', 'mlfm_mobilenetv2_100', 'mlfm_regnety_004', 'mlfm_efficientnet_b0', 'mlfm_convnext_tiny',
    'mlfm_inception_next_tiny', 'gssdnet_o2_100', 'dct_resnet50_24s')


def count(name: str) -> Dict[str, float]:
    """Count the multiply-adds of a network with every counter."""
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg['input_size']
    image = torch.zeros(1, *size)
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        fvcore = FlopCountAnalysis(model, image).by_operator()
        found = {
            "torch's FlopCounterMode / 2": count_cost(name).madds,
            'fvcore, conv + linear': fvcore['conv'] + fvcore['linear'],
            'fvcore, all': sum(fvcore.values()),
            'torchinfo': summary(model, input_data=image, verbose=0).total_mult_adds}
        for backend in ('aten', 'pytorch'):
            found[f'ptflops, {backend}'] = get_model_complexity_info(
                model, size, as_strings=False, print_per_layer_stat=False, backend=backend)[0]
    return {counter: madds / 1e9 for counter, madds in found.items()}


def main() -> None:
    warnings.simplefilter('ignore')
    logging.disable(logging.ERROR)
    print(f'mlfm_zoo {mlfm_zoo.__version__}, torch {torch.__version__}', file=sys.stderr)
    for i, name in enumerate(sys.argv[1:] or NETWORKS):
        found = count(name)
        if i == 0:
            print(f'| network | {" | ".join(found)} |\n| --- |{" --: |" * len(found)}')
        print(f'| `{name}` | {" | ".join(f"{madds:.4f}" for madds in found.values())} |', flush=True)


if __name__ == '__main__':
    main()
