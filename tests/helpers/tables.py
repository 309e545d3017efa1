"""Reading tables."""

import csv


def read_table(file):
    """The rows of a CSV file as dicts."""
    with open(file, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))
