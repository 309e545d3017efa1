"""Run a notebook from top to bottom, and make a page of the site of it.

    python scripts/run_notebook.py docs/notebooks/tour.ipynb
"""

import argparse
import base64
from pathlib import Path
from typing import Dict, List, Tuple

import nbformat
from nbclient import NotebookClient


def run(notebook: nbformat.NotebookNode, timeout: int = 300) -> nbformat.NotebookNode:
    """Run all cells of a notebook in a new kernel, each for at most `timeout` seconds, and keep their outputs in it."""
    NotebookClient(notebook, timeout=timeout, kernel_name='python3').execute()
    return notebook


def markdown_of(notebook: nbformat.NotebookNode, name: str) -> Tuple[str, Dict[str, bytes]]:
    """Make a page of a notebook that has been run: its Markdown, and its pictures by file name.

    A cell that draws says in its metadata, as `alt`, what the picture shows. Pictures' names begin with `name`.
    """
    parts: List[str] = []
    pictures: Dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == 'markdown':
            parts.append(cell.source)
            continue
        parts.append(f'```python\n{cell.source}\n```')
        for output in cell.outputs:
            if output.get('name') == 'stderr':  # warnings of the machine that the page is built on; a failure raises
                continue
            data = {'text/plain': output.text} if output.output_type == 'stream' else output.data
            if 'image/png' in data:
                file = f'{name}-{len(pictures) + 1}.png'
                pictures[file] = base64.b64decode(data['image/png'])
                parts.append(f'![{cell.metadata.get("alt", "")}]({file})')  # site_hooks wants a text
            else:
                parts.append(f'```text\n{data["text/plain"].rstrip()}\n```')
    return '\n\n'.join(parts) + '\n', pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebook', type=Path)
    args = parser.parse_args()
    page, _ = markdown_of(run(nbformat.read(args.notebook, as_version=4)), args.notebook.stem)
    print(page)


if __name__ == '__main__':
    main()
