"""The recipes: what train.py would take, the settings that NOTES give, and the commands."""

import ast
import os
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform

from helpers.networks import ALL, GSSDNET
from mlfm_zoo.workflow.recipe import RECIPES, load_recipe, training_command

# The arguments of timm's train.py (at commit aa4b585) that a recipe may set.
TRAIN_ARGUMENTS = set('''
    num_classes img_size input_size crop_pct mean std interpolation batch_size validation_batch_size channels_last
    grad_accum_steps grad_checkpointing model_kwargs opt opt_eps opt_betas momentum weight_decay clip_grad clip_mode
    layer_decay opt_kwargs sched sched_on_updates lr lr_base lr_base_size lr_base_scale warmup_lr min_lr epochs
    decay_milestones decay_epochs warmup_epochs warmup_prefix cooldown_epochs decay_rate no_aug scale ratio hflip vflip
    color_jitter aa aug_repeats aug_splits reprob remode recount mixup cutmix mixup_prob mixup_switch_prob mixup_mode
    mixup_off_epoch smoothing train_interpolation drop drop_path bn_momentum bn_eps sync_bn model_ema model_ema_decay
    seed data_dir model experiment config dataset dataset_download in_chans train_img_sizes
'''.split())
FAMILIES = sorted(path.stem for path in RECIPES.glob('*.yaml'))


def test_a_recipe_for_every_network():
    found = {load_recipe(name).path.stem for name in ALL}
    found |= {load_recipe(name, dataset).path.stem for name in GSSDNET for dataset in ('imagenet', 'cifar100', 'mnist')}
    assert found == set(FAMILIES)
    assert {load_recipe(name).dataset for name in ALL} == {'imagenet100'}
    assert {load_recipe(name).dataset for name in GSSDNET} == {'imagenet'}
    for name in ('resnet18', 'test_mlfm_resnet', 'mlfm_resnet1', 'mlfm_vit', 'gssdnet', 'gssdnet_o3_100'):
        with pytest.raises(ValueError, match='There is no recipe for'):
            load_recipe(name)
    for name, dataset in (('mlfm_resnet18', 'mnist'), ('gssdnet_o1_050', 'imagenet100'), ('gssdnet_o1_050', 'svhn')):
        with pytest.raises(ValueError, match=f'There is no recipe for {name} on {dataset}, expected '):
            load_recipe(name, dataset)


@pytest.mark.parametrize('family', FAMILIES)
def test_train_takes_every_setting(family):
    text = (RECIPES / f'{family}.yaml').read_text()
    settings = yaml.safe_load(text)
    assert settings.keys() <= TRAIN_ARGUMENTS
    assert all(isinstance(settings[k], (int, float)) for k in ('lr', 'weight_decay', 'epochs', 'batch_size'))
    assert settings['num_classes'] == {'imagenet': 1000, 'mnist': 10}.get(family.partition('-')[2], 100)
    lines = [line for line in text.splitlines() if not line.startswith('#')]
    assert all(re.search(r'\s{2}# \w', s) for s in lines if not s.startswith('num_classes')), 'a source for each'


def test_settings_of_the_authors():
    """What is known of the authors' training: epochs, images an update, rate, decay, size."""
    for name, *expected in (
        ('mlfm_resnet18', 90, 128, 0.1, 1e-4, 256), ('mlfm_resnet50', 90, 256, 0.1, 1e-4, 256),
        ('mlfm_seresnet34', 99, 128, 0.045, 4e-5, 256), ('mlfm_mobilenetv2_010', 150, 128, 0.05, 1e-4, 224),
        ('mlfm_regnety_004', 100, 32, 0.1, 5e-4, 256), ('mlfm_convnext_tiny_k3_par1_2', 300, 4096, 4e-3, 0.05, 224),
        ('mlfm_inception_next_tiny', 300, 4096, 4e-3, 0.05, 224),
    ):
        recipe = load_recipe(name)
        s = recipe.settings
        assert [s['epochs'], recipe.global_batch_size, s['lr'], s['weight_decay'], s['img_size']] == expected
    for name in ALL:
        s, config = load_recipe(name).settings, timm.get_pretrained_cfg(name)
        assert s.get('img_size', config.input_size[-1]) == config.input_size[-1]
        assert s.get('crop_pct', config.crop_pct) == config.crop_pct
        assert s.get('interpolation', config.interpolation) == config.interpolation


def test_settings_of_gssdnet():
    """What the paper and its presets give: epochs, images an update, rate, decay."""
    for dataset, *expected in (
        ('imagenet', 100, 512, 0.2, 1e-4), ('cifar100', 100, 1024, 0.4, 5e-4), ('mnist', 30, 2048, 0.4, 1e-3),
    ):
        recipe = load_recipe('gssdnet_o1_075', dataset)
        s = recipe.settings
        assert [s['epochs'], recipe.global_batch_size, s['lr'], s['weight_decay']] == expected
        shared = (s['momentum'], s['warmup_epochs'], s['sched'], s['smoothing'], s['drop'])
        assert shared == (0.9, 5, 'cosine', 0.1, 0.2)
        assert s.get('model_kwargs') == (None if dataset == 'imagenet' else {'thumbnail': True})
        network = timm.create_model(
            'gssdnet_o1_075', in_chans=s.get('in_chans', 3), num_classes=s['num_classes'], drop_rate=s['drop'],
            **s.get('model_kwargs', {}))
        images = torch.randn(2, s.get('in_chans', 3), s['img_size'], s['img_size'])
        assert network(images).shape == (2, s['num_classes'])
    s, config = load_recipe('gssdnet_vanilla_050').settings, timm.get_pretrained_cfg('gssdnet_vanilla_050')
    assert (s['img_size'], s['crop_pct'], s['interpolation']) == (224, config.crop_pct, config.interpolation)
    assert round(s['img_size'] / s['crop_pct']) == 232 and s['train_img_sizes'] == [192]


@pytest.mark.parametrize('name', ['mlfm_resnet50', 'mlfm_convnext_tiny', 'mlfm_mobilenetv2_100', 'gssdnet_o2_050'])
def test_images_an_update_are_the_same_on_any_number_of_gpus(name):
    recipe = load_recipe(name)
    for gpus, nodes in ((1, 1), (2, 1), (8, 1), (4, 2), (8, 4)):
        arguments = shlex.split(training_command(name, 'a folder', gpus=gpus, nodes=nodes))
        value = {a: b for a, b in zip(arguments, arguments[1:]) if a.startswith('--')}
        batch_size = int(value.get('--batch-size', recipe.settings['batch_size']))
        steps = int(value.get('--grad-accum-steps', recipe.settings.get('grad_accum_steps', 1)))
        assert batch_size * steps * gpus * nodes == recipe.global_batch_size
        assert value['--data-dir'] == 'a folder' and Path(value['--config']).is_file()
        assert ('--sync-bn' in arguments) == (batch_size != recipe.settings['batch_size'])
        assert {a[2:].replace('-', '_') for a in arguments[arguments.index('train.py'):] if a.startswith('--')} <= (
            TRAIN_ARGUMENTS)
    with pytest.raises(ValueError, match='7 GPUs cannot share the batch'):
        training_command(name, 'data', gpus=7)


def test_baseline_differs_in_the_memory_only():
    memory, baseline = (shlex.split(training_command('mlfm_resnet18', 'D', memory)) for memory in (True, False))
    assert baseline[-2:] == ['--model-kwargs', 'memory=False']
    different = [(a, b) for a, b in zip(memory, baseline[:-2]) if a != b]
    assert different == [('mlfm_resnet18-memory-seed42', 'mlfm_resnet18-baseline-seed42')]


def commands(printed):
    return [shlex.split(line) for line in printed.splitlines() if line and not line.startswith('#')]


def test_data_of_gssdnet(run, fail):
    printed = run('recipe', 'gssdnet_o2_050', '--dataset', 'cifar100', '--seed', '7')
    assert 'gssdnet_o2_050 on CIFAR-100: 100 epochs, 1024 images an update' in printed
    assert len(commands(printed)) == 3
    for command in commands(printed):
        value = dict(zip(command, command[1:]))
        assert value['--data-dir'] == 'CIFAR100' and value['--experiment'] == 'gssdnet_o2_050-cifar100-seed7'
        assert Path(value['--config']).stem == 'gssdnet-cifar100' and '--model-kwargs' not in command
    assert 'expected imagenet or cifar100 or mnist' in fail('recipe', 'gssdnet_o2_050', '--dataset', 'imagenet100')


def test_command_line(run):
    printed = run('recipe', 'mlfm_resnet18', '--data', '/data', '--gpus', '3')
    assert [command[0] for command in commands(printed)] == ['mlfm-zoo', 'mlfm-zoo']
    assert '# 3 GPUs cannot share' in printed
    assert len(commands(run('recipe', 'mlfm_resnet18'))) == 6


@pytest.mark.skipif('MLFM_ZOO_TIMM_SCRIPTS' not in os.environ, reason="timm's scripts are in no package")
def test_arguments_are_those_of_timms_script():
    script = Path(os.environ['MLFM_ZOO_TIMM_SCRIPTS'], 'train.py')
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)
             and getattr(node.func, 'attr', '') == 'add_argument']
    flags = {a.value.lstrip('-').replace('-', '_') for call in calls for a in call.args if isinstance(a, ast.Constant)}
    assert TRAIN_ARGUMENTS <= flags


@pytest.mark.parametrize('family', FAMILIES)
def test_augmentation_runs(family):
    """With the installed Pillow: timm's policies may ask for what it refuses."""
    s = yaml.safe_load((RECIPES / f'{family}.yaml').read_text())
    transform = create_transform(
        32, is_training=True, color_jitter=s['color_jitter'] if 'color_jitter' in s else 0.4, auto_augment=s.get('aa'),
        interpolation=s['train_interpolation'], re_prob=s.get('reprob', 0))
    torch.manual_seed(0)
    image = Image.effect_noise((40, 40), 50).convert('RGB')
    for _ in range(300):
        assert transform(image).shape == (3, 32, 32)
