"""The figures that the manifest takes from the authors' logs, against the logs."""

import csv

import pytest

from helpers.reference import REFERENCE, needs_reference
from mlfm_zoo.hub.manifest import load_manifest


@needs_reference
@pytest.mark.parametrize('width', ['010', '035', '050', '075', '100'])
def test_authors_logs(width):
    for kind, memory in (('mlfm', True), ('baseline', False)):
        reported = load_manifest()[f'mlfm_mobilenetv2_{width}', 'paper_in100', memory].reported
        name = f'mobilenetv2_{float(f"{width[0]}.{width[1:]}"):g}_{kind}.tsv'.replace('_1_', '_1.0_')
        with open(REFERENCE / 'authors' / 'logs' / name, newline='') as f:
            top1 = [float(row['Valid Acc.']) for row in csv.DictReader(f, delimiter='\t')]
        assert len(top1) == 150
        assert reported["authors' log best epoch"] == pytest.approx(max(top1))
        assert reported["authors' log last epoch"] == pytest.approx(top1[-1])
