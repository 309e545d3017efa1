"""Write real annotated images in the form of COCO, to try a detector on.

    python scripts/real_instances.py coins OUT               # scikit-image's photograph of 24 coins, in 6 cuts
    python scripts/real_instances.py camvid CAMVID OUT       # of CamVid in SegNet's form: train/ and trainannot/

Both make masks of labels: the coins are segmented by watershed, as in scikit-image's guide; an instance of CamVid is a
connected region of its class, so that objects which touch are one. OUT holds images/ and annotations.json, and of the
coins the whole photograph too.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
from PIL import Image
from pycocotools import mask as coder
from scipy import ndimage

CAMVID = {6: 'sign', 8: 'car', 9: 'pedestrian'}  # labels of SegNet's form
MIN_AREA = {'sign': 60, 'car': 150, 'pedestrian': 100}

Instances = List[Tuple[int, np.ndarray]]  # category and mask (H, W)


def coins() -> Iterator[Tuple[str, np.ndarray, Instances]]:
    """Six cuts of the photograph, with four coins or so each."""
    from skimage import data, filters, measure, segmentation
    image = data.coins()
    seeds = np.zeros_like(image, dtype=np.int32)
    seeds[image < 30], seeds[image > 150] = 1, 2
    regions = segmentation.watershed(filters.sobel(image), seeds)
    labels = measure.label(ndimage.binary_fill_holes(regions == 2))
    areas = np.bincount(labels.ravel())
    coin = [i for i in range(1, len(areas)) if areas[i] > 500]
    for row, (top, bottom) in enumerate(((0, 155), (150, 303))):
        for column, (left, right) in enumerate(((0, 135), (125, 262), (252, 384))):
            cut = labels[top:bottom, left:right]
            # what the cut leaves less than a third of is no coin any more
            masks = [cut == i for i in coin if (cut == i).sum() > areas[i] / 3]
            yield f'coins-{row}-{column}', image[top:bottom, left:right], [(1, mask) for mask in masks]


def camvid(folder: Path, split: str, count: int) -> Iterator[Tuple[str, np.ndarray, Instances]]:
    """The first images of a split that have two instances or more."""
    for file in sorted((folder / split).glob('*.png')):
        classes = np.array(Image.open(folder / f'{split}annot' / file.name))
        instances: Instances = []
        for i, (value, name) in enumerate(CAMVID.items(), start=1):
            labels, number = ndimage.label(classes == value)
            masks = [labels == n for n in range(1, number + 1)]
            instances += [(i, mask) for mask in masks if mask.sum() >= MIN_AREA[name]]
        if len(instances) >= 2 and count > 0:
            count -= 1
            yield file.stem, np.array(Image.open(file).convert('RGB')), instances


def write(output: Path, names: List[str], images: Iterator[Tuple[str, np.ndarray, Instances]]) -> Dict[str, Any]:
    """Write images and annotations; returns the latter."""
    (output / 'images').mkdir(parents=True, exist_ok=True)
    categories = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
    content: Dict[str, Any] = dict(images=[], annotations=[], categories=categories)
    for image_id, (name, image, instances) in enumerate(images, start=1):
        Image.fromarray(image).save(output / 'images' / f'{name}.png')
        content['images'].append(
            dict(id=image_id, file_name=f'{name}.png', height=image.shape[0], width=image.shape[1]))
        for category, mask in instances:
            code = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
            content['annotations'].append(dict(
                id=len(content['annotations']) + 1, image_id=image_id, category_id=category, iscrowd=0,
                area=int(mask.sum()), bbox=coder.toBbox(code).tolist(),
                segmentation=dict(size=code['size'], counts=code['counts'].decode())))
    if not content['images']:
        raise SystemExit('There are no images with instances: give the folder that holds train/ and trainannot/.')
    (output / 'annotations.json').write_text(json.dumps(content), encoding='utf-8')
    print(f'{len(content["images"])} images, {len(content["annotations"])} instances')
    return content


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('coins').add_argument('output', type=Path)
    sub = commands.add_parser('camvid')
    sub.add_argument('folder', type=Path)
    sub.add_argument('output', type=Path)
    sub.add_argument('--split', default='train')
    sub.add_argument('--count', type=int, default=8)
    args = parser.parse_args()
    if args.command == 'coins':
        write(args.output, ['coin'], coins())
        from skimage import data
        Image.fromarray(data.coins()).save(args.output / 'coins.png')
    else:
        write(args.output, list(CAMVID.values()), camvid(args.folder, args.split, args.count))
