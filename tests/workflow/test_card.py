"""Model cards: their metadata as the Hub reads it, and their own snippets, run."""

import re

import pytest
import timm
from huggingface_hub import ModelCard

from mlfm_zoo.hub.manifest import load_manifest, paper_accuracies
from mlfm_zoo.workflow.card import make_card

CHECKPOINTS = load_manifest()


@pytest.mark.parametrize('name', [
    'test_mlfm_resnet.digits', 'mlfm_mobilenetv2_010.paper_in100', 'mlfm_resnet50.a1_in1k'])
def test_metadata_and_sections(name):
    checkpoint = CHECKPOINTS[tuple(name.split('.'))]
    card = make_card(checkpoint)
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag) == ('timm', 'image-classification')
    assert data.license == checkpoint.license and data.datasets
    measured = {result.metric_name: result.metric_value for result in data.eval_results or []}
    assert measured == checkpoint.measured
    assert re.findall(r'^## (.+)$', card, re.MULTILINE) == [
        'Model details', 'Usage', 'How it was trained', 'Reported against measured', 'Limits', 'Citation']
    for value in checkpoint.reported.values():
        assert f'{value:.2f} % | reported, not measured here' in card
    paper = paper_accuracies().get(checkpoint.model)
    assert (paper is not None and f'{paper.memory:.2f} % | the paper, not measured here' in card) == (
        checkpoint.kind == 'paper')
    if checkpoint.num_params:
        assert f'{checkpoint.num_params / 1e6:.2f} M' in card


def test_snippets_run():
    blocks = re.findall(r'```python\n(.*?)```', make_card(CHECKPOINTS['test_mlfm_resnet', 'digits']), re.DOTALL)
    assert len(blocks) == 3
    results = {}
    for block in blocks:
        assert block.startswith('import mlfm_zoo')
        exec(block, results)
    assert results['top'].indices.shape == (1, 5)
    assert [shape[1] for shape in results['shapes']] == timm.create_model(
        'test_mlfm_resnet', features_only=True).feature_info.channels()
    assert results['embedding'].shape == (1, 40)


def test_training_arguments():
    card = make_card(CHECKPOINTS['test_mlfm_resnet', 'digits'], training_args=dict(epochs=7, opt='sgd', mixup=None))
    assert 'epochs 7, opt sgd.' in card and 'mixup' not in card
