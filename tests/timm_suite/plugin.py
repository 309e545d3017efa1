"""pytest plugin: runs timm's own tests/test_models.py on this project's models. It changes no test.

While a test module is collected, `timm.list_models` and `timm.list_pretrained` return this project's models only, and
this project's model modules join the lists of modules that a test asks for. Tests about one particular timm model are
left out, and so is what needs the Hub: `test_model_inference`, which compares with files that only timm's repositories
have, and loading of pretrained weights that do not come with the package.
"""

import pytest
import timm

from mlfm_zoo import models

OUR_MODULES = [name for name in timm.list_modules() if hasattr(models, name) and name != 'mlfm_filtered']
OUR_MODELS = {model for module in OUR_MODULES for model in timm.list_models(module=module)}
LOADS_WEIGHTS = {'test_model_load_pretrained', 'test_model_features_pretrained'}


def _only_ours(list_names):
    def list_ours(*args, module='', **kwargs):
        if isinstance(module, list):
            module = module + OUR_MODULES
        return [name for name in list_names(*args, module=module, **kwargs) if name.split('.')[0] in OUR_MODELS]
    return list_ours


def _needs_hub(test: str, model: str) -> bool:
    on_hub = any(timm.get_pretrained_cfg_value(model, place) is not None for place in ('hf_hub_id', 'url'))
    return test == 'test_model_inference' or test in LOADS_WEIGHTS and on_hub


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
        model = str(params.get('model_name'))
        keep = model.split('.')[0] in OUR_MODELS and not _needs_hub(item.originalname, model)
        (ours if keep else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours
