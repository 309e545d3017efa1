"""pytest plugin: runs timm's own tests/test_models.py on this project's models. It changes no test.

While a test module is collected, `timm.list_models` and `timm.list_pretrained` return this project's models only, and
this project's model modules join the lists of modules that a test asks for. Tests about one particular timm model are
left out, and so is `test_model_inference`, which compares with files that only timm's Hub repositories have.
"""

import sys

import pytest
import timm

import mlfm_zoo.models

OUR_MODULES = [name for name in timm.list_modules() if f'mlfm_zoo.models.{name}' in sys.modules]
OUR_MODELS = {model for module in OUR_MODULES for model in timm.list_models(module=module)}
NEEDS_HUB = {'test_model_inference'}


def _only_ours(list_names):
    def list_ours(*args, module='', **kwargs):
        if isinstance(module, list):
            module = module + OUR_MODULES
        return [name for name in list_names(*args, module=module, **kwargs) if name.split('.')[0] in OUR_MODELS]
    return list_ours


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(collector, pytest.Module):
            patch.setattr(timm, 'list_models', _only_ours(timm.list_models))
            patch.setattr(
                timm, 'list_pretrained', lambda *args, **kwargs: timm.list_models(*args, pretrained=True, **kwargs))
        yield


def pytest_collection_modifyitems(config, items):
    ours, others = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, 'callspec') else {}
        is_ours = str(params.get('model_name')).split('.')[0] in OUR_MODELS
        (ours if is_ours and item.originalname not in NEEDS_HUB else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours
