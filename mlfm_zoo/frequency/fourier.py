"""Error rates of models on images with one Fourier basis vector added.

Paper: A Fourier Perspective on Model Robustness in Computer Vision, https://arxiv.org/abs/1906.08988.
"""

from pathlib import Path
from typing import Any, Dict, Tuple, Union

import torch

from .analysis import Probe, judge
from .tables import damage, read_table, resumable, write_table

__all__ = ['fourier_basis', 'fourier_errors']

FOURIER_COLUMNS = ('model', 'fy', 'fx', 'errors', 'n', 'read')


def fourier_basis(height: int, width: int, fy: int, fx: int) -> torch.Tensor:
    """A real image of one frequency.

    Args:
        height: Height in pixels.
        width: Width in pixels.
        fy: Cycles over the height, from -(height // 2) to height // 2.
        fx: Cycles over the width, likewise.

    Returns:
        A cosine (H, W) of L2 norm 1, whose Fourier coefficients are 0 except those of (fy, fx) and (-fy, -fx).

    Raises:
        ValueError: The image has no such frequency.

    Examples:
        >>> fourier_basis(32, 32, fy=0, fx=5).norm()
        tensor(1.)
    """
    if abs(fy) > height // 2 or abs(fx) > width // 2:
        raise ValueError(
            f'An image of {height}x{width} pixels has no frequency of ({fy}, {fx}) cycles: stay within half of its '
            'sides.')
    y = torch.arange(height, dtype=torch.float64)[:, None] * fy / height
    x = torch.arange(width, dtype=torch.float64) * fx / width
    wave = torch.cos(2 * torch.pi * (y + x))
    return (wave / wave.norm()).float()


def fourier_errors(
        probe: Probe,
        output: Union[str, Path],
        norm: float,
        extent: int = 8,
        progress: bool = False,
) -> Dict[str, Dict[Tuple[int, int], float]]:
    """Measure error rates on images with a Fourier basis vector added, by frequency.

    The vector is added to pixels from 0 to 1, without clipping, with a random sign per image and channel. Counts are
    written to `fourier.csv` after each batch, and an interrupted run resumes.

    Args:
        probe: The models and images.
        output: Folder to write to.
        norm: L2 norm of the vector in each channel.
        extent: Highest frequency on each axis, in cycles per image.
        progress: Whether to show a progress bar.

    Returns:
        For each model, the share of errors at each frequency (fy, fx) of the whole square.

    Raises:
        ValueError: An argument is out of range, no image can be decoded, or `output` holds another or a damaged
            analysis.
        RuntimeError: Another run writes to `output`.

    Examples:
        >>> models = {'memory': timm.create_model('test_mlfm_resnet', pretrained=True)}
        >>> probe = Probe(models, 'digits/val', num_workers=0)
        >>> errors = fourier_errors(probe, 'fourier', norm=8, extent=1)
        >>> sorted(errors['memory'])[:3]
        [(-1, -1), (-1, 0), (-1, 1)]
    """
    if not 0 < norm < float('inf'):
        raise ValueError(f'The norm of the Fourier basis vectors is {norm}, expected a number above 0.')
    largest = min(min(size) // 2 for size in probe.sizes)
    if not 0 <= extent <= largest:
        raise ValueError(f'The highest frequency is {extent}, expected 0 to {largest} cycles per image.')
    file = Path(output) / 'fourier.csv'
    side = range(-extent, extent + 1)
    plane = [(fy, fx) for fy in side for fx in side if (fy, fx) >= (0, 0)]  # (-fy, -fx) is the same wave
    waves = [[fourier_basis(*size, *place).to(probe.device) for place in plane] for size in probe.sizes]
    settings = dict(**probe.settings, norm=norm, extent=extent)
    with resumable(file.parent, 'fourier.json', settings), torch.inference_mode():
        errors = {name: dict.fromkeys(plane, 0) for name in probe.models}
        n = read = 0
        types: Dict[str, Any] = {**dict.fromkeys(FOURIER_COLUMNS, int), 'model': str}
        if file.exists() and (rows := [*read_table(file, types)]):
            with damage(file):
                [(n, read)] = {(row['n'], row['read']) for row in rows}
                if not 0 <= n <= read <= len(probe.files) or not all(0 <= row['errors'] <= n for row in rows):
                    raise ValueError('a count is out of range')
                if [(row['model'], row['fy'], row['fx']) for row in rows] != [
                        (name, *place) for name in errors for place in plane]:
                    raise ValueError('it has other rows')
            for row in rows:
                errors[row['model']][row['fy'], row['fx']] = row['errors']
        for batch in probe.batches(read, progress):
            for images, basis, config, names in zip(batch.images, waves, probe.configs, probe.groups):
                generator = torch.Generator().manual_seed(batch.start)  # a resumed run draws the same signs
                std = torch.tensor(config['std'], device=images.device)[:, None, None]
                for place, wave in zip(plane, basis):
                    signs = 2 * torch.randint(2, (*images.shape[:2], 1, 1), generator=generator).to(images) - 1
                    disturbed = images + norm * signs * wave / std
                    for name in names:
                        answers = judge(probe.models[name](disturbed), batch.labels)
                        errors[name][place] += sum(rank > 1 for _, rank, _ in answers)
            n += len(batch.files)
            write_table(file, FOURIER_COLUMNS, [
                (name, *place, count, n, batch.end)
                for name, counts in errors.items() for place, count in counts.items()])
    if not n:
        raise probe.nothing_decoded()
    return {
        name: {(fy, fx): counts[max((fy, fx), (-fy, -fx))] / n for fy in side for fx in side}
        for name, counts in errors.items()}
