"""Fourier basis vectors against numpy, and errors on images with one added."""

import numpy as np
import pytest

from helpers.tables import read_table
from mlfm_zoo import frequency

MODEL = 'test_mlfm_resnet'


@pytest.mark.parametrize('size', [(8, 8), (9, 12)])
def test_fourier_basis(size):
    """Norm 1, real, and two coefficients; together with phases they span what there is, checked by orthogonality."""
    for fy in range(-(size[0] // 2), size[0] // 2 + 1):
        for fx in range(size[1] // 2 + 1):
            wave = frequency.fourier_basis(*size, fy, fx)
            assert wave.norm() == pytest.approx(1)
            spectrum = np.abs(np.fft.fft2(wave.double().numpy()))
            places = {tuple(place) for place in np.argwhere(spectrum > 1e-4)}
            assert places == {(fy % size[0], fx % size[1]), (-fy % size[0], -fx % size[1])}
    with pytest.raises(ValueError, match='no frequency of'):
        frequency.fourier_basis(8, 8, 5, 0)


def test_fourier_errors(data, models, tmp_path):
    """What an added wave of no size does not change; a resumed map is that of one run; DC changes by sign alone."""
    probe = frequency.Probe({MODEL: models[MODEL]}, data, batch_size=16, num_workers=0)
    tiny = frequency.fourier_errors(probe, tmp_path / 'tiny', norm=1e-6, extent=1)[MODEL]
    assert set(tiny.values()) == {0.0} and len(tiny) == 9  # of 60 digits the network knows all
    large = frequency.fourier_errors(probe, tmp_path / 'large', norm=30, extent=1)[MODEL]
    assert large[0, 1] == large[0, -1] and large[1, -1] == large[-1, 1] and max(large.values()) > 0.2
    whole = (tmp_path / 'large' / 'fourier.csv').read_bytes()
    batches = probe.batches

    def stop_early(start=0, progress=False):
        for i, batch in enumerate(batches(start, progress)):
            if i == 2:
                raise KeyboardInterrupt
            yield batch
    probe.batches = stop_early
    with pytest.raises(KeyboardInterrupt):
        frequency.fourier_errors(probe, tmp_path / 'parts', norm=30, extent=1)
    assert read_table(tmp_path / 'parts' / 'fourier.csv')[0]['n'] == '32'
    probe.batches = batches
    assert frequency.fourier_errors(probe, tmp_path / 'parts', norm=30, extent=1)[MODEL] == large
    assert (tmp_path / 'parts' / 'fourier.csv').read_bytes() == whole
    header, *rows = whole.decode().splitlines(keepends=True)
    for damaged in (
        whole[:-9].decode(), header + rows[0], header + ''.join(rows[::-1]), whole.decode().replace('60', '16', 1),
        whole.decode().replace(',60,60', ',60,99'), whole.decode().replace(',60,60', ',-1,60'),
        whole.decode().replace(MODEL, 'other'), 'x' * 200_000, '',
    ):
        (tmp_path / 'parts' / 'fourier.csv').write_text(damaged)
        with pytest.raises(ValueError, match='fourier.csv is damaged'):
            frequency.fourier_errors(probe, tmp_path / 'parts', norm=30, extent=1)
    for arguments in (dict(norm=0), dict(norm=float('nan')), dict(norm=1, extent=33), dict(norm=1, extent=-1)):
        with pytest.raises(ValueError, match='expected'):
            frequency.fourier_errors(probe, tmp_path / 'no', **arguments)
