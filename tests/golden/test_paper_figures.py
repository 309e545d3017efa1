"""The paper's figures in the manifest against a transcript of its table."""

import csv

from helpers.networks import ALL
from helpers.reference import REFERENCE, needs_reference
from mlfm_zoo.hub.manifest import paper_accuracies


@needs_reference
def test_paper_figures():
    with open(REFERENCE / 'paper_table.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert {name: tuple(value) for name, value in paper_accuracies().items()} == {
        row['model']: (float(row['baseline_top1']), float(row['mlfm_top1'])) for row in rows}
    assert set(paper_accuracies()) == set(ALL)
