"""What the page computes and draws, without Gradio: which networks, answers, filters, curves, memory, bad files."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import mlfm_zoo
from digits import load_split
from mlfm_zoo.app import answers, html
from mlfm_zoo.app.answers import HIGH, LOW
from mlfm_zoo.data.images import UnreadableImage
from mlfm_zoo.workflow.predict import trained_checkpoints

NETWORK = 'test_mlfm_resnet.digits'
PHOTOS = sorted((Path(mlfm_zoo.__file__).parent / 'app' / 'photos').glob('*.jpg'))


@pytest.fixture(scope='module')
def pair():
    return answers.load_pair(NETWORK)


@pytest.fixture(scope='module')
def digit(pair):
    """A held-out digit as the network takes it, and which one it is."""
    _, test = load_split()
    return pair.prepare(test.images[0].convert('RGB')), int(test.labels[0])


@pytest.fixture
def with_trunk(pair):
    """A pair whose network without memory answers differently."""
    torch.manual_seed(0)
    return dataclasses.replace(pair, trunk=timm.create_model('test_mlfm_resnet', memory=False).eval())


class Tags(HTMLParser):
    """Text of a piece of HTML, its tags with their attributes, and whether all that open also close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags = [], '', []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('img', 'br', 'path', 'line'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_counterpart_without_memory():
    found = {c.name: answers.without_memory(c) for c in trained_checkpoints()}
    assert found[NETWORK] is None
    other = found['mlfm_mobilenetv2_010.paper_in100']
    assert other and not other.memory and other.tag == 'paper_in100'


def test_pair_is_the_network(pair, digit):
    image, label = digit
    assert pair.trunk is None and pair.labels == list('0123456789') and not pair.memory.training
    assert int(answers.answer(pair.memory, image[None]).argmax()) == label
    shown = pair.pixels(image)
    assert shown.size == (64, 64) and abs(pair.prepare(shown) - image).max() < 0.1


def test_photographs_of_the_page(pair):
    assert len(PHOTOS) == 6
    for photo in PHOTOS:
        assert photo.stat().st_size <= 25_000
        assert photo.name in photo.with_name('SOURCES.md').read_text(encoding='utf-8')
        image, note = answers.open_photo(photo, pair)
        assert image.mode == 'RGB' and min(image.size) >= 224 and note == ''


def test_files_that_are_no_photograph(pair, tmp_path):
    """One sentence, with the name alone of a file that the browser sent."""
    (tmp_path / 'photo.jpg').write_bytes(b'<html>')
    Image.new('L', (40_000, 10)).save(tmp_path / 'strip.png')
    for name, said in (('photo.jpg', 'cannot be decoded as an image'), ('strip.png', 'is 40000 x 10 pixels')):
        with pytest.raises(UnreadableImage, match=f'^{name} {said}'):
            answers.open_photo(tmp_path / name, pair)


@pytest.mark.parametrize('mode, kind', [('CMYK', 'JPEG'), ('I;16', 'PNG'), ('LAB', 'TIFF')])
def test_what_is_converted_is_said(mode, kind, pair, tmp_path):
    Image.new(mode, (300, 200)).save(tmp_path / 'photo', kind)
    image, note = answers.open_photo(tmp_path / 'photo', pair)
    assert image.mode == 'RGB' and image.size == (300, 200)
    assert note == f'photo has pixels of mode {mode}; they were converted to 8-bit RGB.'


def test_photographs_are_upright(pair, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new('RGB', (300, 200)).save(tmp_path / 'photo.jpg', exif=exif)
    assert answers.open_photo(tmp_path / 'photo.jpg', pair)[0].size == (200, 300)


def test_take_away(digit):
    """Both directions start from the whole image, and what one keeps the other removes."""
    image, _ = digit
    assert torch.equal(answers.take_away(image, LOW, 0), image)
    assert torch.equal(answers.take_away(image, HIGH, 46), image)
    kept = answers.take_away(image, HIGH, 7) + answers.take_away(image, LOW, 7)
    torch.testing.assert_close(kept, image, atol=1e-5, rtol=0)


@pytest.mark.parametrize('removed', [HIGH, LOW])
def test_curves(removed, with_trunk, digit):
    image, label = digit
    found = answers.curves(with_trunk, image, removed)
    assert found.label == str(label) and found.radii == sorted(set(found.radii))
    assert found.radii[0] == 0 and found.radii[-1] == with_trunk.full_radius == 46
    whole = -1 if removed == HIGH else 0
    for model, values in ((with_trunk.memory, found.memory), (with_trunk.trunk, found.trunk)):
        assert len(values) == len(found.radii)
        assert values[whole] == pytest.approx(float(answers.answer(model, image[None])[0, label]), abs=1e-5)
        at = answers.answer(model, answers.take_away(image, removed, found.radii[5])[None])[0, label]
        assert values[5] == pytest.approx(float(at), abs=1e-5)


def test_memories(pair, digit):
    """One map for each unit, in order, as the unit wrote it; no hook stays behind."""
    image, _ = digit
    units = [module for module in pair.memory.modules() if isinstance(module, mlfm_zoo.LowFrequencyMemoryUnit)]
    probabilities, written = answers.memories(pair.memory, image)
    assert torch.equal(probabilities, answers.answer(pair.memory, image[None])[0])
    assert len(written) == len(units) > 1 and written[0].layer == 'stem'
    assert all(memory.mean.shape == memory.shape[1:] for memory in written)
    sides = [memory.shape[1] for memory in written]
    assert sides == sorted(sides, reverse=True)
    assert not any(unit._forward_hooks for unit in units)


def test_answers_are_drawn_with_bars():
    text = html.draw_answers('With memory', 'with', ['<a>', 'b', 'c', 'd', 'e', 'f'],
                             torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.05, 0.0125]))
    tags = Tags(text)
    items = [attributes for tag, attributes in tags.tags if tag == 'li']
    assert [item['style'] for item in items] == [f'--share: {n}%' for n in ('50.0', '25.0', '12.5', '6.2', '5.0')]
    assert '<a>50.0 %' in tags.text
    assert 'no weights that were trained without memory' in Tags(html.draw_answers('', 'without', ['a'], None)).text


def test_curves_are_drawn():
    curves = answers.Curves('a"b', [0, 5, 10], [0, 0.5, 1], [0.25, 0.25, 0.25])
    tags = Tags(html.draw_curves(curves, HIGH, 5))
    lines = [a for tag, a in tags.tags if tag == 'path' and 'line' in a.get('class', '')]
    assert [line['d'] for line in lines] == ['M0.0 75.00 L500.0 75.00 L1000.0 75.00',
                                             'M0.0 100.00 L500.0 50.00 L1000.0 0.00']
    [now] = [a for tag, a in tags.tags if tag == 'line']
    assert now['x1'] == now['x2'] == '500.0'
    [label] = [a['aria-label'] for tag, a in tags.tags if tag == 'svg']
    assert label == ('Probability of a"b: with memory from 0 % at radius 0 to 100 % at radius 10; '
                     'without memory from 25 % at radius 0 to 25 % at radius 10')
    alone = Tags(html.draw_curves(curves._replace(trunk=[]), LOW, 5))
    assert sum('line' in a.get('class', '') for tag, a in alone.tags if tag == 'path') == 1


def test_memories_are_drawn():
    maps = [answers.Memory('stem', (3, 2, 2), torch.tensor([[0., 1.], [2., 3.]])),
            answers.Memory('flat', (1, 1, 1), torch.zeros(1, 1))]
    tags = Tags(html.draw_memories(maps))
    pictures = [a for tag, a in tags.tags if tag == 'img']
    assert [picture['alt'] for picture in pictures] == ['Memory after stem', 'Memory after flat']
    content = base64.b64decode(re.sub('^data:image/png;base64,', '', pictures[0]['src']))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.size == (2, 2)
        assert [picture.getpixel(at) for at in ((0, 0), (1, 1))] == [(0x44, 0x01, 0x54), (0xfd, 0xe7, 0x25)]


def test_facts(pair):
    text = Tags(html.draw_classes(pair)).text
    assert "Trained on scikit-learn's handwritten digits" in text
    assert 'Measured: 100.00 % (top-1 of 360 held-out digits).' in text
    assert 'It knows 10 classes' in text and '0, 1, 2, 3' in text


def test_messages():
    assert html.draw_message('') == ''
    tags = Tags(html.draw_message('a < b.'))
    assert tags.text == 'a < b.' and ('p', {'class': 'alert', 'role': 'alert'}) in tags.tags
