"""Model cards: their metadata as the Hub reads it, and their own snippets, run."""

import dataclasses
import re

import pytest
import timm
from huggingface_hub import ModelCard

from mlfm_zoo.hub.manifest import load_manifest, paper_accuracies
from mlfm_zoo.workflow.card import dataset_of, make_card

CHECKPOINTS = load_manifest()


@pytest.mark.parametrize('key', [
    ('test_mlfm_resnet', 'digits', True), ('mlfm_mobilenetv2_010', 'paper_in100', True),
    ('mlfm_mobilenetv2_010', 'paper_in100', False), ('mlfm_mobilenetv2_100', 'paper_in100', True),
    ('mlfm_resnet50', 'a1_in1k', True)])
def test_metadata_and_sections(key):
    checkpoint = CHECKPOINTS[key]
    card = make_card(checkpoint)
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag) == ('timm', 'image-classification')
    assert data.license == checkpoint.license and data.datasets
    measured = {f'{r.metric_name} of {r.dataset_name}': r.metric_value for r in data.eval_results or []}
    assert measured == checkpoint.measured  # of 50 photos, for instance, which are not ImageNet100
    assert re.findall(r'^## (.+)$', card, re.MULTILINE) == [
        'Model details', 'Usage', 'How it was trained', 'Reported against measured', 'Limits', 'Citation']
    for value in checkpoint.reported.values():
        assert re.search(rf"{value:.2f} % \| the authors(' README)?, not evaluated here", card)
    paper = paper_accuracies().get(checkpoint.model)
    assert (paper is not None and f"{paper.memory:.2f} % | the authors' README, not evaluated here" in card) == (
        checkpoint.kind == 'paper')
    authors = 'by the authors of the paper: Fuzhi Wu, Jiasong Wu' in card
    assert authors == (checkpoint.kind == 'paper') and ('memory=False' in card) == (not checkpoint.memory)
    assert ('has not evaluated these weights' in card) == (authors and not checkpoint.measured)
    if checkpoint.num_params:
        assert f'{checkpoint.num_params / 1e6:.2f} M' in card


def test_snippets_run():
    blocks = re.findall(r'```python\n(.*?)```', make_card(CHECKPOINTS['test_mlfm_resnet', 'digits', True]), re.DOTALL)
    assert len(blocks) == 3
    results = {}
    for block in blocks:
        assert block.startswith('import mlfm_zoo')
        exec(block, results)
    assert results['top'].indices.shape == (1, 5)
    assert [shape[1] for shape in results['shapes']] == timm.create_model(
        'test_mlfm_resnet', features_only=True).feature_info.channels()
    assert results['embedding'].shape == (1, 40)


@pytest.mark.parametrize('model, words, tag, paper', [
    ('gssdnet_o2_050', 'fixed Gaussians', 'gssdnet', '2302.12477'),
    ('gssdnet_vanilla_050', 'VanillaNet', 'gssdnet', '2302.12477'),
    ('dct_resnet50_24s', 'DCT coefficients', 'dct', 'Learning in the Frequency Domain')])
def test_networks_without_memory(model, words, tag, paper):
    """Nothing is said of a memory, or of the paper that has it."""
    known = CHECKPOINTS['test_mlfm_resnet', 'digits', True]
    checkpoint = dataclasses.replace(known, model=model, tag='mine', kind='trained', num_classes=1000, input_size=(
        3, 224, 224))
    card = make_card(checkpoint)
    assert words in card and paper in card and ModelCard(card).data.tags[-1] == tag
    assert not re.search('memory|MLFM|wu2024|ImageNet100', card)


@pytest.mark.parametrize('tag, name, kind', [
    ('in100', 'ImageNet100 (ambityga/imagenet100)', 'imagenet100'), ('mine', 'unknown data', 'other')])
def test_data_of_a_figure(tag, name, kind):
    """A figure that names no images of its own was measured on the validation images of its training's data."""
    known = CHECKPOINTS['mlfm_mobilenetv2_010', 'paper_in100', True]
    card = make_card(dataclasses.replace(
        known, tag=tag, kind='trained', measured={'top-1': 60.0}, command='mlfm-zoo evaluate'))
    [result] = ModelCard(card).data.eval_results
    assert (result.metric_name, result.dataset_name, result.dataset_type) == ('top-1', name, kind)
    assert f'| top-1 on {name} | 60.00 % | measured: `mlfm-zoo evaluate` |' in card


def test_weights_of_others():
    """Only the authors' own weights name the authors of the paper as their source."""
    known = CHECKPOINTS['mlfm_mobilenetv2_010', 'paper_in100', True]
    card = make_card(dataclasses.replace(known, kind='warm_start', source_repo='github.com/someone/trunks'))
    assert 'Released in [github.com/someone/trunks]' in card and 'Fuzhi Wu, Jiasong Wu' not in card


@pytest.mark.parametrize('tag, num_classes, training_args, expected', [
    ('paper_in100', 100, {}, 'imagenet100'),
    ('mine', 100, {}, None),
    ('mine', 100, {'dataset': 'torch/cifar100'}, None),
    ('in100', 100, {'dataset': 'torch/cifar100'}, None),
    ('mine', 100, {'dataset': 'hfds/ambityga/imagenet100'}, 'imagenet100'),
    ('in100', 10, {}, None),
    ('imagenette', 10, {}, 'frgfm/imagenette'),
])
def test_dataset_is_what_was_recorded(tag, num_classes, training_args, expected):
    dataset = dataset_of(tag, num_classes, training_args)
    assert (dataset and dataset.id) == expected
