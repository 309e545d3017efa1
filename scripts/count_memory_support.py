"""Count the networks of timm that can have a memory: of all, and of those that are convolutional.

    python scripts/count_memory_support.py

A network counts as convolutional if it has convolutions, and nothing in the forward pass of its features is a softmax
or a product of two matrices, as attention is. Networks are built and run on the meta device, which takes some minutes
and computes nothing.
"""

import sys
import warnings

import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mlfm_zoo

ATTENTION = {'_softmax', '_safe_softmax', 'bmm', 'baddbmm', 'scaled_dot_product_attention', 'mm'}


class Operations(TorchDispatchMode):
    """Keeps the names of torch's operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def is_convolutional(model: torch.nn.Module) -> bool:
    """Whether a network on the meta device is convolutional, as the top of this file says."""
    image = torch.empty(1, *model.pretrained_cfg['input_size'], device='meta')
    with torch.no_grad(), Operations() as operations:
        model.forward_features(image)
    return 'convolution' in operations.names and not ATTENTION & operations.names


def main() -> None:
    names = [name for name in timm.list_models() if 'mlfm' not in name]
    taken, convolutional, both, failed = 0, 0, 0, []
    for i, name in enumerate(names, start=1):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                model = timm.create_model(name, device='meta').eval()
                alone = is_convolutional(model)
            except Exception as error:  # of any kind: not every network of timm runs on the meta device
                failed.append(f'{name} ({type(error).__name__})')
                continue
        takes = bool(mlfm_zoo.supports_memory(model))
        taken, convolutional, both = taken + takes, convolutional + alone, both + (takes and alone)
        if sys.stderr.isatty():
            print(f'\r{i} of {len(names)}', end='', file=sys.stderr, flush=True)
    print(f'timm {timm.__version__}: {taken} of {len(names)} networks take a memory, and {both} of the {convolutional} '
          'that are convolutional.')
    if failed:
        print(f'Not counted as convolutional, since they do not run on the meta device: {", ".join(failed)}.')


if __name__ == '__main__':
    main()
