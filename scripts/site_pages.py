"""Pages made when the site is built: networks, checkpoints, commands, manifest.

Each fact comes from its source: the registered networks; results/networks.csv with their counts; weights_manifest.yaml;
model cards; the papers' figures; the measured times in results/times.csv; the command's parsers.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence
from unittest import mock

import timm
import torch.nn as nn

from make_results import ROOT, read_csv
from make_tables import DCT_PAPER, GSSDNET_PAPER, costs
from mlfm_zoo import LowFrequencyMemoryUnit
from mlfm_zoo.data import imagenet100
from mlfm_zoo.hub.manifest import Checkpoint, own_checkpoints, paper_accuracies
from mlfm_zoo.workflow import card as cards
from mlfm_zoo_cli.main import make_parser

__all__ = [
    'Kind', 'checkpoint_page', 'checkpoint_path', 'commands_page', 'link_names', 'manifest_page', 'network_names',
    'network_page', 'network_path', 'networks_table',
]

# Cards of one network differ in their weights and not in its cost, which takes most of the time to build the site.
cards.count_cost = functools.lru_cache(maxsize=None)(cards.count_cost)


class Kind(NamedTuple):
    """A kind of networks: prefix of their names, title, and the page about them."""
    prefix: str
    title: str
    guide: str


NETWORK_KINDS = (
    Kind('mlfm_resnet', 'ResNet', 'memory.md'),
    Kind('mlfm_seresnet', 'SE-ResNet', 'memory.md'),
    Kind('mlfm_mobilenetv2', 'MobileNetV2', 'memory.md'),
    Kind('mlfm_regnet', 'RegNet', 'memory.md'),
    Kind('mlfm_efficientnet', 'EfficientNet', 'memory.md'),
    Kind('mlfm_convnext', 'ConvNeXt', 'memory.md'),
    Kind('mlfm_inception_next', 'InceptionNeXt', 'memory.md'),
    Kind('test_mlfm', 'For tests', 'memory.md'),
    Kind('dct_', 'DCT networks', 'dct.md'),
    Kind('gssdnet_', 'GSSDNet networks', 'gssdnet.md'),
)


# What a checkpoint of each kind loads, as a comment of one line.
START = {
    'embedded': 'the weights in the package', 'paper': "the authors' weights", 'trained': 'trained weights',
    'warm_start': 'ImageNet-1k weights in the trunk; the memory has learned nothing yet',
    'initialisation': "timm's weights, to start a training from",
}


def kind_of(name: str) -> Kind:
    """The kind of a network, by its name."""
    return next(kind for kind in NETWORK_KINDS if name.startswith(kind.prefix))


def network_names() -> List[str]:
    """Registered networks in timm's order, without the wrapper `mlfm_filtered`."""
    return [name for name in timm.list_models()
            if timm.models.model_entrypoint(name).__module__.startswith('mlfm_zoo.models.') and name != 'mlfm_filtered']


def network_path(name: str) -> str:
    """Where a network's page lies in the docs."""
    return f'networks/{name}.md'


def checkpoint_path(checkpoint: Checkpoint) -> str:
    """Where a checkpoint's page lies in the docs."""
    return f'checkpoints/{checkpoint.name}{"" if checkpoint.memory else "-trunk"}.md'


def link_names(markdown: str) -> str:
    """Turn the names that begin the rows of a page's tables into links to their pages.

    Args:
        markdown: A page at the root of the docs.

    Returns:
        The page with links.
    """
    paths = {f'`{name}`': network_path(name) for name in network_names()}
    for checkpoint in own_checkpoints().values():
        name = f'`{checkpoint.name}`' if checkpoint.memory else f'`{checkpoint.name}`, `memory=False`'
        paths[name] = checkpoint_path(checkpoint)

    def link(row: 're.Match[str]') -> str:
        cell = row[1]
        return f'| [{cell}]({paths[cell]}) |' if cell in paths else row[0]

    return re.sub(r'^\| (`[^|]+`) \|', link, markdown, flags=re.MULTILINE)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], numbers: bool = False) -> str:
    """A Markdown table; `numbers` right-aligns all columns except the first."""
    lines = [header, ['---', *[('--:' if numbers else '---')] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def note(kind: str, title: str, text: str) -> str:
    """An admonition."""
    return f'!!! {kind} "{title}"\n\n' + '\n'.join(f'    {line}'.rstrip() for line in text.splitlines())


def links(checkpoints: Sequence[Checkpoint]) -> str:
    return ', '.join(f'[`{c.tag}`{"" if c.memory else " (trunk)"}](../{checkpoint_path(c)})' for c in checkpoints)


def what_is_trained(name: str, checkpoints: Sequence[Checkpoint]) -> str:
    """The note at the top of a network's page: which weights it has, if any."""
    of_kind: Dict[str, List[Checkpoint]] = {kind: [] for kind in cards.KINDS}
    for checkpoint in checkpoints:
        of_kind[checkpoint.kind].append(checkpoint)
    warm, starts = of_kind['warm_start'], of_kind['initialisation']
    lines = []
    if of_kind['trained']:
        lines.append(f'Trained by this project: {links(of_kind["trained"])}.')
    if of_kind['paper']:
        lines.append(
            f"The authors' own ImageNet100 weights: {links(of_kind['paper'])}. This project has not trained it on "
            'ImageNet100.')
    if of_kind['embedded']:
        known = {'digits': 'handwritten digits', 'imagenette': 'ten classes of photographs'}[of_kind['embedded'][0].tag]
        lines.append(f'Weights in the package: {links(of_kind["embedded"])}. They know {known} only.')
    trained = bool(lines)
    if not trained:
        what = 'this network with its memory' if name.startswith('mlfm_') else 'this network'
        lines.append(f"**Not trained.** No trained weights of {what} exist, neither the authors' nor this project's.")
    if warm:
        lines.append('Warm starts, with ImageNet-1k weights in the trunk and a memory that has learned nothing: '
                     f'{links(warm)}.')
    if starts:
        lines.append(f"Initializations to train from, without a trained classifier: {links(starts)}.")
    if not trained:
        lines.append(f'`pretrained=True`{" without a tag" if checkpoints else ""} raises an error.')
    return note('success' if trained else 'warning', 'What is trained', '\n'.join(lines))


def cost_row(what: str, cost: Dict[str, Any]) -> List[str]:
    return [what, f'{cost["params"] / 1e6:.2f}', f'{cost["madds"] / 1e9:.3f}', f'{cost["activations"] / 1e6:.2f}',
            f'{cost["input_size"]} x {cost["input_size"]}']


def memory_sites(model: nn.Module) -> List[List[Any]]:
    """A row for each memory unit: its site, level, channels and gates."""
    return [[
        f'`{name.removeprefix("memory.")}`', unit.level, unit.output_gate.num_features,
        unit.input_gate.conv.in_channels, unit.update, 'yes' if unit.supplement_gate is not None else 'no',
    ] for name, unit in model.named_modules() if isinstance(unit, LowFrequencyMemoryUnit)]


def memory_options(options_cls: type) -> List[List[str]]:
    """A row for each memory option, with what the record of options says of it."""
    documented = {}
    for cls in filter(dataclasses.is_dataclass, options_cls.__mro__):
        documented.update(re.findall(r'^ {8}(\w+): (.+)$', cls.__doc__ or '', re.MULTILINE))
    return [[f'`{field.name}`', documented[field.name]] for field in dataclasses.fields(options_cls)]


def trunk_of(name: str) -> str:
    trunk = name.removeprefix('mlfm_')
    if trunk != name and timm.is_model(trunk):
        return f"timm's `{trunk}`"
    return "this package's own, which timm lacks"


def accuracy(name: str, checkpoints: Sequence[Checkpoint]) -> str:
    """What papers report, marked as such, and what was measured, with the command."""
    rows = []
    if name in paper_accuracies():
        trunk, memory = paper_accuracies()[name]
        source = "the authors' README; not evaluated here"
        rows += [[f'ImageNet100 top-1, {what}', f'{value:.2f} %', source]
                 for what, value in (('trunk alone', trunk), ('with memory', memory))]
    if name in GSSDNET_PAPER:
        rows += [[f'{data} top-1', f'{value} %', 'the paper; not evaluated here']
                 for data, value in zip(('MNIST', 'CIFAR-100', 'ImageNet'), GSSDNET_PAPER[name])]
    if name in DCT_PAPER:
        rows.append(['ImageNet top-1', f'{DCT_PAPER[name]} %', 'the paper; not evaluated here'])
    rows += [[f'{what} (`{c.tag}`{"" if c.memory else ", trunk alone"})', f'{value:.2f} %', f'measured: `{c.command}`']
             for c in checkpoints for what, value in c.measured.items()]
    if not rows:
        return 'No paper reports an accuracy of this network, and none was measured.'
    text = table(['figure', 'value', 'from'], rows)
    if not any(c.measured for c in checkpoints):
        text += '\n\nThis project has measured no accuracy of it.'
    return text


@functools.cache
def measured_times() -> List[Dict[str, str]]:
    """Rows of results/times.csv for networks with memory, in float32."""
    return [row for row in read_csv(ROOT / 'results' / 'times.csv')
            if row['dtype'] == 'float32' and row['setting'] in ('deploy', 'training')
            and row['variant'] in ('memory', 'fused', 'fused folded')]


def measured_cost(name: str) -> Optional[str]:
    """A network's times in each engine, and their ratios to the plain trunk."""
    found = [row for row in measured_times() if row['model'] == name]
    if not found:
        return None
    rows = [(row['what'], row['variant'], row['engine'], row['batch_size'], row['threads'], row['ms'],
             f'{float(row["ratio"]):.2f} ({float(row["ratio_low"]):.2f} to {float(row["ratio_high"]):.2f})')
            for row in found]
    machines = ', '.join(dict.fromkeys(row['machine'] for row in found))
    return (f'Milliseconds a batch at {found[0]["input_size"]} x {found[0]["input_size"]} on {machines}, and the time '
            'relative to the plain trunk: medians and quartiles. [Cost](../cost.md) and '
            '[Export](../export.md#what-the-memory-costs-in-each-engine) have the commands.\n\n'
            + table(['what', 'variant', 'engine', 'batch', 'threads', 'ms', 'times the trunk'], rows))


def network_page(name: str) -> str:
    """Make the page of a network.

    Args:
        name: Its registered name.

    Returns:
        Markdown.
    """
    checkpoints = [c for c in own_checkpoints().values() if c.model == name]
    entrypoint = timm.models.model_entrypoint(name)
    has_memory = 'mlfm_' in name
    model = timm.create_model(name, device='meta')
    config = model.pretrained_cfg
    sites = memory_sites(model)
    counted = costs()
    size = [cost_row('with memory' if has_memory else f'`{name}`', counted[name, ''])]
    if has_memory:
        size.insert(0, cost_row('trunk alone, `memory=False`', counted[name, 'memory=False']))
    kind = kind_of(name)
    facts = [
        ['family', f'{kind.title}, [explained here](../{kind.guide})'],
        *([['trunk', trunk_of(name)]] if has_memory else []),
        ['input', ' x '.join(map(str, config['input_size'])) + ' (channels, height, width)'],
        ['classes', model.num_classes],
        ['features before the classifier', model.num_features],
        ['class', f'`{type(model).__module__}.{type(model).__name__}`'],
    ]
    ways = [('untrained', name, '')]
    first = next((c for c in checkpoints if c.available), None)
    if first:
        ways.append((START[first.kind], first.name, 'pretrained=True'))
    if has_memory:
        ways.append(('the same network without memory', name, 'memory=False'))
    ways.append(('feature maps instead of classes', name, 'features_only=True'))
    ways.append(('ten classes', name, 'num_classes=10') if name.startswith('dct_') else
                ('gray images and ten classes', name, 'in_chans=1, num_classes=10'))
    create = '\n\n'.join(
        f"# {what}\nmodel = timm.create_model(" + (f"\n    '{of}', {rest})" if rest else f"'{of}')")
        for what, of, rest in ways)
    sections = [
        '---\nsearch:\n  boost: 4\n---',  # before pages that only mention it
        f'# {name}',
        what_is_trained(name, checkpoints),
        (entrypoint.__doc__ or type(model).__doc__ or '').strip().splitlines()[0],
        table(['what', 'value'], facts),
        '## How to create it',
        f'```python\nimport timm, mlfm_zoo\n\n{create}\n```',
        '## Size',
        table(['network', 'parameters (M)', 'multiply-adds (G)', 'activations (M)', 'image'], size, True),
        'Counted by `mlfm_zoo.workflow.cost.count_cost`. Multiply-adds are those of convolutions and linear layers.',
    ]
    if has_memory:
        sections += [
            '## Memory',
            'A memory unit sits after each of these modules of the trunk. *Level* is how often the image was halved '
            'for the band that the unit reads. [How the memory works](../memory.md) explains units and levels.',
            table(['site', 'level', 'channels', 'channels of the memory', 'update', 'supplement gate'], sites),
            'Options that `timm.create_model` takes:',
            table(['option', 'what it sets'], memory_options(type(model).options_cls)),
        ]
    sections += ['## Accuracy', accuracy(name, checkpoints)]
    cost = measured_cost(name)
    if has_memory and cost:
        sections += ['## Time', cost]
    sections.append('## Weights')
    if checkpoints:
        rows = [[f'[`{c.title}`](../{checkpoint_path(c)})', c.kind, c.license, c.num_classes] for c in checkpoints]
        sections.append(table(['name', 'kind', 'license', 'classes'], rows))
    else:
        sections.append('None. [The checkpoints](../checkpoints.md) lists all that exist.')
    return '\n\n'.join(sections) + '\n'


def file_rows(checkpoint: Checkpoint) -> List[List[str]]:
    """Where the file is, and what it must be, byte for byte."""
    places = {'package': 'the package', 'hub': f'the Hub repository `{checkpoint.repo}`',
              'authors': f"the authors' repository `{checkpoint.source_repo}`"}
    not_known = 'not known to this project; the file is compared with the digest that the Hub gives'
    rows = [
        ['tag', f'`{checkpoint.tag}`'],
        ['kind', checkpoint.kind],
        ['from', ', then '.join(places[place] for place in checkpoint.places) or 'nowhere yet'],
        ['license', checkpoint.license],
    ]
    if checkpoint.repo or checkpoint.file:
        rows += [
            ['file', f'`{checkpoint.file}`' if checkpoint.file else 'as timm names it'],
            ['commit', f'`{checkpoint.commit}`' if checkpoint.commit else
             ("the package's own" if checkpoint.kind == 'embedded' else 'not pinned')],
            ['SHA-256', f'`{checkpoint.sha256}`' if checkpoint.sha256 else not_known],
        ]
    if checkpoint.source_repo:
        rows += [
            ['released file', f'`{checkpoint.source_path}`'],
            ['commit', f'`{checkpoint.source_commit}`'],
            ['git blob', f'`{checkpoint.source_blob}`'],
        ]
    size = checkpoint.size or checkpoint.source_size
    return [*rows, ['size', f'{size:,} bytes' if size else 'not known']]


def checkpoint_page(checkpoint: Checkpoint) -> str:
    """Make the page of a checkpoint: its model card, and its file.

    Args:
        checkpoint: The checkpoint.

    Returns:
        Markdown.
    """
    _, _, card = cards.make_card(checkpoint).partition('\n---\n')  # after the metadata
    text = cards.KINDS[checkpoint.kind]
    heading, _, rest = card.strip().replace(f' {text}', '', 1).partition('\n\n')  # which is said first
    trained = checkpoint.kind in ('trained', 'paper', 'embedded')
    if not checkpoint.measured:
        text += '\nThis project has measured no accuracy of these weights.'
    before, details, after = rest.partition('## Usage\n')
    sections = [
        heading,
        note('info' if trained else 'warning', 'What these weights are' if trained else 'Not a trained network', text),
        f'Network: [`{checkpoint.model}`](../{network_path(checkpoint.model)})',
        before.strip(),
        '## The file',
        table(['what', 'value'], file_rows(checkpoint)),
        (details + after).strip(),
    ]
    return '\n\n'.join(sections) + '\n'


def networks_table() -> str:
    """The first page's table of all networks, to sort and filter (docs/site.js).

    Returns:
        HTML.
    """
    counted = costs()
    times = {row['model']: float(row['ratio']) for row in measured_times()
             if row['setting'] == 'deploy' and row['engine'].endswith('eager') and row['variant'] == 'memory'
             and (row['batch_size'], row['threads']) == ('1', '1')}
    columns = (
        ('network', ''), ('family', ''), ('params (M)', 'number'), ('MAdds (G)', 'number'),
        ('top-1 reported, trunk', 'number'), ('top-1 reported', 'number'), ('time, times trunk', 'number'),
        ('weights', ''))
    rows = []
    for name in sorted(network_names(), key=lambda name: NETWORK_KINDS.index(kind_of(name))):
        kind, cost = kind_of(name), counted[name, '']
        trunk, reported = '', ''
        if name in paper_accuracies():
            trunk, reported = (f'{value:.2f}' for value in paper_accuracies()[name])
        elif name in GSSDNET_PAPER or name in DCT_PAPER:
            reported = f'{GSSDNET_PAPER[name][-1] if name in GSSDNET_PAPER else DCT_PAPER[name]:.2f}'
        kinds = [c.kind for c in own_checkpoints().values() if c.model == name and c.available]
        weights = next((text for key, text in (
            ('trained', 'own'), ('paper', "authors'"), ('embedded', 'in the package'), ('warm_start', "timm's, trunk"),
            ('initialisation', "timm's, to start")) if key in kinds), 'none')
        time = f'{times[name]:.2f}' if name in times else ''
        cells = [
            f'<a href="networks/{name}/"><code>{name}</code></a>', kind.title, f'{cost["params"] / 1e6:.2f}',
            f'{cost["madds"] / 1e9:.3f}', trunk, reported, time, weights]
        rows.append('<tr>' + ''.join(
            f'<td class="{align}">{cell}</td>' for (_, align), cell in zip(columns, cells)) + '</tr>')
    heads = ''.join(
        f'<th scope="col" aria-sort="none" class="{align}"><button type="button">{title}</button></th>'
        for title, align in columns)
    families = ''.join(f'<option>{kind.title}</option>' for kind in NETWORK_KINDS)
    return f'''<div class="networks" markdown="0">
<p class="networks-filters">
<label>Filter <input type="search" placeholder="resnet50"></label>
<label>Family <select><option value="">all</option>{families}</select></label>
<label><input type="checkbox"> with weights</label>
<span role="status">{len(rows)} networks</span>
</p>
<div class="networks-scroll" tabindex="0" role="region" aria-label="Table of networks">
<table class="networks-table"><thead><tr>{heads}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table>
</div>
</div>'''


def commands_page() -> str:
    """Make the page of the command line from its parsers.

    Returns:
        Markdown.
    """
    sections = [
        '# Command line',
        'All commands and their options. `python -m mlfm_zoo` is the same as `mlfm-zoo`.',
        '```sh\nmlfm-zoo list\nmlfm-zoo predict photo.jpg\n```',
        'With `pip install \'.[completion]\'` in a clone of this repository the shell completes commands and options:',
        '```sh\nto=~/.local/share/bash-completion/completions\nmlfm-zoo --print-completion bash > $to/mlfm-zoo\n```',
        '`zsh`, `fish` and `tcsh` work too.']

    def section(name: str, text: str) -> None:
        sections.extend([f'{"#" * min(2 + name.count(" "), 4)} {name}', f'```text\n{text.strip()}\n```'])

    def describe(parser: argparse.ArgumentParser) -> None:
        section(parser.prog, parser.format_help())
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    if name == 'imagenet100':  # a program of its own
                        for argv in ([], ['prepare'], ['verify']):
                            with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
                                imagenet100.main([*argv, '--help'])
                            section(' '.join([child.prog, *argv]), text.getvalue())
                    else:
                        describe(child)

    with mock.patch.dict(os.environ, COLUMNS='80'):  # the width that argparse writes for
        describe(make_parser())
    return '\n\n'.join(sections) + '\n'


def manifest_page() -> str:
    """Make the page of the manifest's fields from the record that reads them.

    Returns:
        Markdown.
    """
    text = re.split(r'\n {4}Attributes:\n', Checkpoint.__doc__ or '')[1]
    meaning = {name: ' '.join(said.split()) for name, said in re.findall(
        r'^ {8}(\w+): (.*?)(?=^ {8}\w+: |\Z)', text, re.MULTILINE | re.DOTALL)}
    rows = [[
        f'`{field.name}`', 'yes' if field.default is field.default_factory is dataclasses.MISSING else '',
        meaning[field.name].replace('|', '\\|')] for field in dataclasses.fields(Checkpoint)]
    return '\n\n'.join([
        "# The manifest's fields",
        'You can list checkpoints of your own in a file of the same form as `weights_manifest.yaml`, and name it in '
        '`MLFM_ZOO_MANIFEST`. Its entries join those of the package, and replace those of the same model and tag.',
        '```yaml\nversion: 2\ncheckpoints:\n  - model: mlfm_resnet18\n    tag: mine\n    kind: trained\n'
        '    places: [hub]\n    repo: ORG/mlfm_resnet18.mine\n    file: model.safetensors\n    num_classes: 10\n'
        '    input_size: [3, 224, 224]\n    license: apache-2.0\n    origin: trained on my photographs\n```',
        'Then `timm.create_model(\'mlfm_resnet18.mine\', pretrained=True)` loads the newest file of that repository, '
        'and compares it with the digest that the Hub reports. To pin one file, add `commit` and `sha256`. '
        '`mlfm-zoo publish --manifest FILE` writes entries with both.',
        table(['field', 'required', 'meaning'], rows)]) + '\n'
