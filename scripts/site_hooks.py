"""MkDocs hooks: add generated pages, run the notebook, and set picture sizes."""

import logging
import re
import time
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, List
from urllib.parse import unquote

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from PIL import Image

from mlfm_zoo import __version__
from mlfm_zoo.hub.manifest import own_checkpoints
from run_notebook import markdown_of, run
from site_pages import (
    NETWORK_KINDS,
    checkpoint_page,
    checkpoint_path,
    commands_page,
    kind_of,
    link_names,
    manifest_page,
    network_names,
    network_page,
    network_path,
    networks_table,
)

log = logging.getLogger('mkdocs.plugins.site_hooks')  # its warnings fail a strict build

NOTEBOOK = 'notebooks/tour.ipynb'
NETWORKS_MARK = '<!-- the table of all networks -->'
TABLES = ('models.md', 'checkpoints.md', 'results.md', 'cost.md')  # whose rows begin with names


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add generated pages to the navigation, and version and date to the footer."""
    sections: Dict[str, List[Any]] = {title: items for entry in config.nav for title, items in entry.items()}
    reference: Dict[str, Any] = {title: items for entry in sections['Reference'] if isinstance(entry, dict)
                                 for title, items in entry.items()}
    for kind in NETWORK_KINDS:
        names = [name for name in network_names() if kind_of(name) is kind]
        reference['Networks'].append({kind.title: [{name: network_path(name)} for name in names]})
        checkpoints = [c for c in own_checkpoints().values() if c.model in names]
        if checkpoints:
            pages = [{c.title: checkpoint_path(c)} for c in checkpoints]
            reference['Checkpoints'].append({kind.title: pages})
    config.copyright = f'mlfm_zoo {__version__}, {time.strftime("%d %B %Y")}. Apache-2.0.'
    return config


@lru_cache(maxsize=1)
def _made() -> Dict[str, Any]:
    """Content of generated files, made once, since `mkdocs serve` builds repeatedly."""
    made: Dict[str, Any] = {network_path(name): network_page(name) for name in network_names()}
    made.update((checkpoint_path(c), checkpoint_page(c)) for c in own_checkpoints().values())
    made.update({'commands.md': commands_page(), 'manifest.md': manifest_page()})
    notebook = nbformat.read(Path(__file__).parents[1] / 'docs' / NOTEBOOK, as_version=4)
    page, pictures = markdown_of(run(notebook), 'tour')
    made[NOTEBOOK.replace('.ipynb', '.md')] = page
    made.update((f'notebooks/{name}', content) for name, content in pictures.items())
    return made


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    for path, content in _made().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link names in tables to their pages, and insert the table of all networks."""
    markdown = markdown.replace(' % |', '&nbsp;% |')  # a narrow column keeps number and sign on one line
    if page.file.src_uri == 'index.md':
        return markdown.replace(NETWORKS_MARK, networks_table())
    return link_names(markdown) if page.file.src_uri in TABLES else markdown


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Set picture sizes, so that nothing moves on loading, and name the search dialog."""
    folder = Path(page.file.abs_dest_path).parent

    def sized(tag: 're.Match[str]') -> str:
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag[0]))
        if not attributes.get('alt'):
            log.warning('%s: the picture %s has no text.', page.file.src_uri, attributes.get('src'))
        if 'width' in attributes:
            return tag[0]
        width, height = _size(folder / unquote(attributes['src']), config)
        return f'<img width="{width}" height="{height}" loading="lazy"{tag[0][4:]}'

    return re.sub(r'<img\b[^>]*>', sized, _with_named_search(output))


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Name the search dialog of 404.html, which is no page."""
    return _with_named_search(output)


def _with_named_search(output: str) -> str:
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')


def _size(built: Path, config: MkDocsConfig) -> Any:
    """Width and height of a picture by the path that it has in the built site."""
    path = built.resolve().relative_to(Path(config.site_dir).resolve()).as_posix()
    content = _made().get(path)
    if content is not None:
        return Image.open(BytesIO(content)).size
    source = Path(config.docs_dir) / path
    if source.suffix == '.svg':
        return re.findall(r'<svg [^>]*width="(\d+)" height="(\d+)"', source.read_text(encoding='utf-8'))[0]
    return Image.open(source).size
