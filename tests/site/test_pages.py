"""The files of the built site: its pages are there, their links lead somewhere, and pictures have sizes and texts.

`make docs` builds it and runs these tests. `MLFM_ZOO_SITE` names the folder of the site, `site` here if it is not set.
"""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

SITE = Path(os.environ.get('MLFM_ZOO_SITE', Path(__file__).parents[2] / 'site'))
PAGES = sorted(p.relative_to(SITE).as_posix().removesuffix('index.html') for p in SITE.rglob('*.html'))

# Of each kind one: pictures, drawings, wide tables, made pages, signatures, a notebook, long code.
SAMPLE = [
    '', 'memory/', 'models/', 'cost/', 'commands/', 'networks/mlfm_mobilenetv2_010/',
    'checkpoints/', 'checkpoints/mlfm_mobilenetv2_010.paper_in100/', 'results/',
    'api/memory/', 'api/segmentation/', 'notebooks/tour/', 'weights/',
]


class Links(HTMLParser):
    """Addresses that a page uses, its anchors, and its pictures."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.anchors, self.pictures = [], {''}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ('id', 'name') if attrs.get(key)}
        self.addresses += [attrs[key] for key in ('href', 'src') if attrs.get(key) is not None]
        if tag == 'img':
            self.pictures.append(attrs)


@pytest.fixture(scope='module')
def parsed():
    assert (SITE / 'index.html').is_file(), f'There is no site in {SITE}: run make docs.'
    return {page: Links((SITE / page / 'index.html' if not page.endswith('.html') else SITE / page).read_text('utf-8'))
            for page in PAGES}


def test_pages_of_all_kinds_are_there(parsed):
    assert len(parsed) > 180
    assert set(SAMPLE) < set(parsed)


def test_links_lead_somewhere(parsed):
    """Within the site to a file and an anchor of it; to other hosts in the form of an address, which is not opened."""
    lost = []
    for page, links in parsed.items():
        for link in links.addresses:
            if link.startswith(('https://', 'http://')):
                if not urlsplit(link).netloc.count('.'):
                    lost.append(f'{page}: {link}')
                continue
            if link.startswith(('mailto:', 'data:', 'javascript:')):
                lost.append(f'{page}: {link}')
                continue
            target = urlsplit(urljoin(f'http://site/{page}', link))
            path, anchor = unquote(target.path).lstrip('/'), unquote(target.fragment)
            file = SITE / path / 'index.html' if path.endswith('/') or not path else SITE / path
            if not file.is_file():
                lost.append(f'{page}: {link}')
            elif file.suffix == '.html' and anchor and not anchor.startswith('__'):
                key = path.removesuffix('index.html')
                if anchor not in parsed[key].anchors:
                    lost.append(f'{page}: {link} (no such anchor)')
    assert not lost, '\n'.join(lost)


def test_pictures_have_sizes_and_texts(parsed):
    pictures = [(page, picture) for page, links in parsed.items() for picture in links.pictures]
    assert len([page for page, _ in pictures if page == '']) >= 4
    for page, picture in pictures:
        assert len(picture.get('alt') or '') > 5, (page, picture)
        assert int(picture['width']) > 0 and int(picture['height']) > 0, (page, picture)
