"""Make weights that come with the package from a finished run of timm's train.py.

    python scripts/package_weights.py RUN FILE

The last epoch is taken, not the best: which epoch is best was chosen on the images that accuracy is reported on. Prints
what the manifest's entry needs to know of the file.
"""

import sys
from pathlib import Path

from safetensors.torch import save_file

import mlfm_zoo
from mlfm_zoo.convert import read_checkpoint
from mlfm_zoo.hub.files import file_digest

run, file = Path(sys.argv[1]), Path(mlfm_zoo.__file__).parent / 'weights' / sys.argv[2]
save_file({k: v.contiguous() for k, v in read_checkpoint(run / 'last.pth.tar').items()}, file)
print(f'file: weights/{file.name}\nsha256: {file_digest(file)}\nsize: {file.stat().st_size}')
