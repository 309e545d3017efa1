"""Time and memory of `imagenet100 prepare` for 130,000 and 5,000 images.

    python benchmarks/prepare_imagenet100.py [--folder FOLDER] [--output FILE]

A made-up set in Kaggle's shards, each image a small JPEG of its own, is prepared, prepared again with nothing to do,
and verified. Memory is the largest resident set seen while the command works on the files, which it does as a process
of its own without torch, and beside it the largest of the whole command, which starts with torch. --output names a CSV
file for CPU time and memory: time on the clock depends on what else the machine does.
"""

import argparse
import csv
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict

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


def measure(*arguments: str) -> Dict[str, str]:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [sys.executable, '-m', 'mlfm_zoo', 'imagenet100', *map(str, arguments)], stdout=subprocess.DEVNULL)
    largest = {True: 0.0, False: 0.0}
    while process.poll() is None:
        memory, works = resident(process.pid)
        largest[works] = max(largest[works], memory)
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f'{arguments[0]}: {seconds:.1f} s, {cpu:.1f} s of CPU time, {largest[True]:.0f} MiB at work '
          f'({largest[False]:.0f} MiB at the start)')
    return dict(command=arguments[0], cpu_seconds=f'{cpu:.1f}', mib=f'{largest[True]:.0f}',
                mib_at_start=f'{largest[False]:.0f}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', help='folder on the disk to measure, the system\'s for temporary files if left out')
    parser.add_argument('--output', type=Path, help='CSV file for the figures')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source, dest = Path(name, 'source'), Path(name, 'dest')
        make_set(source)
        rows = [measure('prepare', source, dest), measure('prepare', source, dest), measure('verify', dest)]
        if args.output:
            with open(args.output, 'w', newline='', encoding='utf-8') as f:
                table = csv.DictWriter(f, rows[0], lineterminator='\n')
                table.writeheader()
                table.writerows(rows)
