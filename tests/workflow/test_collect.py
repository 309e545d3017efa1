"""Runs of train.py: what is refused, what is picked, and the figures, against scipy."""

import json
import math

import pytest
import torch
import yaml
from scipy import stats

from helpers.runs import MODEL, write_run
from mlfm_zoo.workflow.collect import RunError, compare, difference_interval, half_interval, read_run
from mlfm_zoo_cli import main


def refusal(folder):
    with pytest.raises((RunError, FileNotFoundError)) as error:
        read_run(folder)
    message = str(error.value)
    assert '\n' not in message
    return message


def test_best_and_last(tmp_path):
    run = read_run(write_run(tmp_path / 'run', model_kwargs={'memory_update': 'cat', 'memory': True}))
    assert run.best == (2, 90.0, tmp_path / 'run' / 'model_best.pth.tar')  # the first of equals
    assert run.last == (4, 80.0, tmp_path / 'run' / 'last.pth.tar')
    assert run.memory and run.model_args == {'memory_update': 'cat'}
    assert not read_run(write_run(tmp_path / 'baseline', model_kwargs={'memory': False})).memory


def test_run_behind_a_filter(tmp_path):
    kwargs = {'network': MODEL, 'radius': 4, 'memory': False}
    run = read_run(write_run(tmp_path / 'run', model='mlfm_filtered', model_kwargs=kwargs))
    assert run.model == 'mlfm_filtered' and not run.memory
    assert run.model_args == {'network': MODEL, 'radius': 4}


def test_resumed_run(tmp_path):
    """The header and an epoch once more, as a resumed train.py writes them; the best kept by its number."""
    folder = write_run(tmp_path / 'run')
    lines = (folder / 'summary.csv').read_text().splitlines()
    lines[4:4] = [lines[3].replace('90.0', '33.0'), lines[0], lines[3]]
    (folder / 'summary.csv').write_text('\n'.join(lines))
    (folder / 'model_best.pth.tar').unlink()
    assert read_run(folder).best == (2, 90.0, folder / 'checkpoint-2.pth.tar')


def test_schedules_that_are_longer(tmp_path):
    assert 'it has 5 of 7 epochs' in refusal(write_run(tmp_path / 'a', cooldown_epochs=2))
    assert 'it has 5 of 8 epochs' in refusal(write_run(tmp_path / 'b', warmup_epochs=3, warmup_prefix=True))
    assert read_run(write_run(tmp_path / 'c', warmup_epochs=3)).last.number == 4


def test_what_is_refused(tmp_path):
    assert 'There is no args.yaml in' in refusal(tmp_path / 'nothing')
    unfinished = write_run(tmp_path / 'a', epochs=9)
    assert 'is not finished, it has 5 of 9 epochs: resume it with --resume' in refusal(unfinished)
    assert 'expected a network of this package' in refusal(write_run(tmp_path / 'b', model='test_resnet'))
    assert 'expected top1' in refusal(write_run(tmp_path / 'c', eval_metric='loss'))

    folder = write_run(tmp_path / 'd')
    for path in folder.glob('*.pth.tar'):
        if path.name != 'last.pth.tar':
            path.unlink()
    assert 'lacks the checkpoint of its best epoch, 2' in refusal(folder)
    (folder / 'last.pth.tar').unlink()
    assert 'lacks the checkpoint' in refusal(folder)

    folder = write_run(tmp_path / 'e')
    path = folder / 'last.pth.tar'
    content = path.read_bytes()
    path.unlink()  # it is linked to others
    for damaged in (content[:len(content) // 2], b'', b'<html>'):
        path.write_bytes(damaged)
        assert 'last.pth.tar is damaged' in refusal(folder)
    torch.save([1], path)
    assert "is not what timm's train.py writes" in refusal(folder)
    path.write_bytes((folder / 'model_best.pth.tar').read_bytes())
    assert 'they are not of one run' in refusal(folder)

    for text in ('', 'epoch,train_loss\n0,1\n', 'epoch,eval_top1\n0,nan\n', 'epoch,eval_top1\nx,1\n', '\0\0\0'):
        (folder / 'summary.csv').write_text(text)
        assert 'is damaged or empty' in refusal(folder)
    for text in ('[', '[1]', 'model: test_mlfm_resnet', ''):
        (folder / 'args.yaml').write_text(text)
        assert "is not what timm's train.py writes" in refusal(folder)

    for text, fault in (
            ('model: 3', 'gives model as 3, expected str'), ('epochs: true', 'gives epochs as True, expected int'),
            ('input_size: [a, b]', r"gives input_size as ['a', 'b'], expected tuple[int, int, int]")):
        (folder / 'args.yaml').write_text(text)
        assert fault in refusal(folder)

    def diverge(network):
        network.fc.weight.data[0, 0] = math.nan
    assert 'the training had diverged' in refusal(write_run(tmp_path / 'f', weights=diverge))
    folder = write_run(tmp_path / 'g')
    (folder / 'args.yaml').write_text(yaml.safe_dump(dict(model=MODEL, epochs=5, model_kwargs={'memory': False})))
    assert 'weights of another network' in refusal(folder)


ALIASES = '\n'.join(['a: &a [x, x, x, x, x, x, x, x, x]', *(
    f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]' for a, b in zip('abcdefgh', 'bcdefghi'))])


@pytest.mark.parametrize('text', [
    ALIASES, '[' * 5000, '!!python/object:os.system {}', 'epochs: !!int ""', 'epochs: !!timestamp x', 'x: !!bool maybe',
    '3: 4', 'epochs: five', 'cooldown_epochs: x', 'data_dir: [a]', 'seed: [1]', 'model_kwargs: {memry: 1}',
    'model_kwargs: [memory]',
], ids=lambda text: text[:20])
def test_args_of_others(text, tmp_path, capsys):
    """One sentence for YAML that hangs, runs code, or has values of other types."""
    folder = write_run(tmp_path / 'run')
    given = (folder / 'args.yaml').read_text()
    names = [line.partition(':')[0] for line in text.splitlines()]
    kept = [line for line in given.splitlines() if line.partition(':')[0] not in names]
    (folder / 'args.yaml').write_text('\n'.join([*kept, text]))
    assert main(['collect', str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith('error: ') and said.count('\n') == 1, said


def test_a_flipped_bit_is_found(tmp_path):
    """In the data of a tensor, which torch.load returns without a word."""
    folder = write_run(tmp_path / 'run')
    path = folder / 'last.pth.tar'
    content = bytearray(path.read_bytes())
    content[content.index(torch.load(path)['state_dict']['fc.weight'].numpy().tobytes())] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert 'last.pth.tar is damaged' in refusal(folder)


def test_tag_is_that_of_the_data(tmp_path, capsys):
    folder = write_run(tmp_path / 'run', dataset='torch/cifar100')
    assert main(['collect', str(folder)]) == 0
    assert 'mlfm-zoo publish test_mlfm_resnet.cifar100 --weights' in capsys.readouterr().out


def test_intervals_against_scipy():
    for top1, n in ((62.8, 5000), (83.06, 5000), (99.0, 360)):
        expected = stats.norm.ppf(0.975) * stats.binom(n, top1 / 100).std() / n * 100
        assert half_interval(top1, n) == pytest.approx(expected, rel=1e-4)
    low, high = difference_interval(82.68, 83.06, 5000)
    assert (low + high) / 2 == pytest.approx(0.38) and low < 0 < high
    # an unpaired difference under about 1.3 to 1.9 points is within the noise, for accuracies of 58 to 88 percent
    assert difference_interval(58.38, 58.38, 5000)[1] == pytest.approx(1.93, abs=0.01)
    assert difference_interval(88.1, 88.1, 5000)[1] == pytest.approx(1.27, abs=0.01)


def test_baseline_against_memory_over_seeds(tmp_path, capsys):
    for i, shift in enumerate((0.0, 1.0, 2.0)):
        write_run(tmp_path / f'memory{i}', [60.0, 70.0 + shift, 69.0], seed=i)
    for i, shift in enumerate((0.0, 3.0)):
        write_run(tmp_path / f'baseline{i}', [60.0, 66.0 + shift, 61.0], seed=i, model_kwargs={'memory': False})
    write_run(tmp_path / 'other', [1.0, 2.0], model_kwargs={'memory_update': 'cat'})
    runs = [read_run(folder) for folder in sorted(tmp_path.iterdir())]
    best, last, other, _ = compare(runs, 1000)
    assert best['memory']['mean'] == 71 and best['memory']['deviation'] == pytest.approx(1)
    assert best['baseline']['mean'] == 67.5 and best['difference'] == pytest.approx(3.5)
    assert last['difference'] == pytest.approx(8) and last['memory']['deviation'] == 0
    assert best['interval'][0] < 3.5 < best['interval'][1]
    assert other['model_args'] == {'memory_update': 'cat'} and other['baseline'] is other['difference'] is None

    assert main(['collect', *(str(run.folder) for run in runs), '--num-images', '1000']) == 0
    printed = capsys.readouterr().out
    low, high = best['interval']
    assert (f'test_mlfm_resnet, best epoch; baseline 67.50 +- {half_interval(67.5, 1000):.2f}, '
            f'deviation 2.12 over 2 runs; memory 71.00 +- {half_interval(71, 1000):.2f}, deviation 1.00 over 3 runs; '
            f'difference +3.50 ({low:+.2f} to {high:+.2f})') in printed
    assert printed.count('mlfm-zoo publish test_mlfm_resnet.in100 --weights') == 4
    assert '--model-kwargs memory_update=cat' in printed
    assert main(['collect', str(tmp_path / 'other'), '--json']) == 0
    assert [row['epoch'] for row in json.loads(capsys.readouterr().out)] == ['best', 'last']
    assert main(['collect', *(str(run.folder) for run in runs), '--publish', 'org']) == 1
    assert 'name its folder alone' in capsys.readouterr().err
