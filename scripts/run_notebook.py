"""Run a notebook from top to bottom, and make a page of the site of it.

    python scripts/run_notebook.py docs/notebooks/tour.ipynb
"""

import argparse
import base64
from pathlib import Path
from typing import Dict, List, Tuple

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

__all__ = ['markdown_of', 'run']


def run(notebook: nbformat.NotebookNode, timeout: int = 300) -> nbformat.NotebookNode:
    """Run all cells of a notebook in a new kernel.

    Args:
        notebook: The notebook, whose cells keep their outputs.
        timeout: Seconds for a cell.

    Returns:
        The same notebook.

    Raises:
        CellExecutionError: A cell has failed.
    """
    NotebookClient(notebook, timeout=timeout, kernel_name='python3').execute()
    return notebook


def markdown_of(notebook: nbformat.NotebookNode, name: str) -> Tuple[str, Dict[str, bytes]]:
    """Make a page of a notebook that has been run.

    Args:
        notebook: The notebook. A cell that draws says in its metadata, as `alt`, what the picture shows.
        name: Name of its file without ending, which pictures begin with.

    Returns:
        The page in Markdown, and its pictures by file name.

    Raises:
        ValueError: A cell outputs what is neither text nor a PNG picture with its text.
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
            if 'image/png' in data and cell.metadata.get('alt'):
                file = f'{name}-{len(pictures) + 1}.png'
                pictures[file] = base64.b64decode(data['image/png'])
                parts.append(f'![{cell.metadata["alt"]}]({file})')
            elif 'text/plain' in data and 'image/png' not in data:
                parts.append(f'```text\n{data["text/plain"].rstrip()}\n```')
            else:
                raise ValueError(
                    f'A cell of {name} outputs {", ".join(data)}, expected text, or a PNG picture and its text as '
                    f'"alt" in the metadata of the cell: {cell.source.splitlines()[0]!r}.')
    return '\n\n'.join(parts) + '\n', pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebook', type=Path)
    args = parser.parse_args()
    try:
        page, _ = markdown_of(run(nbformat.read(args.notebook, as_version=4)), args.notebook.stem)
    except (CellExecutionError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    print(page)


if __name__ == '__main__':
    main()
