"""How long `imagenet100 prepare` takes for a whole set, 130,000 and 5,000 links, and how much memory.

    python benchmarks/prepare_imagenet100.py [--folder FOLDER]

A made-up set in Kaggle's shards, each image a small JPEG of its own, is prepared, prepared again with nothing to do,
and verified. Memory is the largest resident set seen while the command works on the files, which it does as a process
of its own without torch, and beside it the largest of the whole command, which starts with torch.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from mlfm_zoo.data.imagenet100 import SYNSETS


def make_set(root: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert('RGB').save(file, 'JPEG')
    content = file.getvalue()
    for i, synset in enumerate(SYNSETS):
        for folder, count in ((root / f'train.X{i // 25 + 1}' / synset, 1300), (root / 'val.X' / synset, 50)):
            folder.mkdir(parents=True)
            for j in range(count):
                (folder / f'{synset}_{j}.JPEG').write_bytes(content)
        print(f'\rmaking the set: {i + 1} of {len(SYNSETS)} classes', end='', flush=True)
    print()


def resident(pid: int) -> tuple[float, bool]:
    """Resident set in MiB, and whether the process is the one that works on the files."""
    try:
        status = Path(f'/proc/{pid}/status').read_text()
        command = Path(f'/proc/{pid}/cmdline').read_text()
    except OSError:
        return 0.0, False
    values = [line.split()[1] for line in status.splitlines() if line.startswith('VmRSS')]
    return (int(values[0]) / 1024 if values else 0.0), 'imagenet100.py' in command


def measure(*arguments: str) -> None:
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, '-m', 'mlfm_zoo', 'imagenet100', *map(str, arguments)], stdout=subprocess.DEVNULL)
    largest = {True: 0.0, False: 0.0}
    while process.poll() is None:
        memory, works = resident(process.pid)
        largest[works] = max(largest[works], memory)
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    assert process.returncode == 0
    print(f'{arguments[0]}: {seconds:.1f} s, {largest[True]:.0f} MiB at work ({largest[False]:.0f} MiB at the start)')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', help='folder on the disk to measure, the system\'s for temporary files if left out')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, dest = Path(name, 'source'), Path(name, 'dest')
        make_set(source)
        measure('prepare', source, dest)
        measure('prepare', source, dest)
        measure('verify', dest)
