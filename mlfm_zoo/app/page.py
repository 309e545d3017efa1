"""The page: its controls, what follows when one is used, and how it is started."""

from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Tuple, Union

import torch

from .._extras import require_extra
from ..data.images import UnreadableImage
from ..hub.loading import CheckpointError
from ..workflow.predict import is_here, trained_checkpoints
from . import answers, html
from .answers import HIGH, LOW

__all__ = ['launch', 'make_page']

PHOTOS = [Path(__file__).with_name('photos') / f'{name}.jpg'
          for name in ('cathedral', 'mausoleum', 'tower', 'cat', 'hat', 't-shirt')]
TITLE = 'What a low-frequency memory sees'
INTRODUCTION = f'''<header class="zoo"><h1>{TITLE}</h1>
<p>Choose a network and a photograph. Then take frequencies away, and see how the answers change with memory and
without.</p></header>'''


class Look(NamedTuple):
    """What the page shows: a network, a photo's file and input image, and the curves."""
    network: str
    file: Path
    image: torch.Tensor
    curves: answers.Curves


def offer(checkpoint: answers.Checkpoint) -> Tuple[str, str]:
    """A network as the list shows it, and its name."""
    return checkpoint.name + ('' if is_here(checkpoint) else ' (is downloaded first)'), checkpoint.name


def look_at(network: str, file: Path, removed: str) -> Tuple[Look, str]:
    """Show a photograph to a network.

    Returns what the page shows, and a sentence if the photograph had to be converted, else ''. A CheckpointError says
    that the weights cannot be fetched, an UnreadableImage that the file is no photograph that the network takes.
    """
    pair = answers.load_pair(network)
    photo, note = answers.open_photo(file, pair)
    image = pair.prepare(photo)
    return Look(network, file, image, answers.curves(pair, image, removed)), note


def draw(look: Look, removed: str, radius: float) -> str:
    """All that follows the slider: filtered photograph, answers, curves and memory."""
    pair = answers.load_pair(look.network)
    image = answers.take_away(look.image, removed, radius)
    probabilities, written = answers.memories(pair.memory, image)
    without = answers.answer(pair.trunk, image[None])[0] if pair.trunk else None
    height, width = image.shape[1:]
    return f'''<div class="zoo results">
<div class="top">{html.draw_photo(pair.pixels(image), f"As the networks see it: {width} × {height} pixels")}
{html.draw_curves(look.curves, removed, radius)}</div>
<div class="columns">{html.draw_answers("With memory", "with", pair.labels, probabilities)}
{html.draw_answers("Without memory", "without", pair.labels, without)}</div>
{html.draw_memories(written)}</div>'''


def make_page() -> Any:
    """Build the page.

    Returns:
        Gradio's blocks, which `launch` starts.

    Raises:
        RuntimeError: Gradio is not installed.
    """
    gr = require_extra('gradio', 'app', 'The page')

    def choose(network: str, removed: str, look: Optional[Look], file: Union[str, Path, None] = None) -> List[Any]:
        """Show a photograph, the last one if none is given; what was shown stays if that fails."""
        try:
            shown, note = look_at(network, Path(file or (look.file if look else PHOTOS[0])), removed)
        except (CheckpointError, UnreadableImage) as error:
            kept = look.network if look else network
            return [gr.skip(), html.draw_message(str(error)), gr.Dropdown(value=kept), *[gr.skip()] * 3]
        pair = answers.load_pair(network)
        radius = pair.full_radius if removed == HIGH else 0  # at which nothing is taken away
        return [
            shown, html.draw_message(note), gr.Dropdown([offer(c) for c in trained_checkpoints()], value=network),
            html.draw_classes(pair), gr.Slider(maximum=pair.full_radius, value=radius), draw(shown, removed, radius)]

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        look = gr.State()
        gr.HTML(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                network = gr.Dropdown(
                    [offer(c) for c in trained_checkpoints()], value=answers.first_network().name, label='Network',
                    elem_id='network')
                facts = gr.HTML()
                with gr.Row(elem_id='photos'):
                    buttons = [gr.Button(photo.stem, icon=str(photo), variant='secondary') for photo in PHOTOS]
                file = gr.File(label='Your photograph', height=120)
                message = gr.HTML()
            with gr.Column(scale=7, min_width=320):
                with gr.Row():
                    removed = gr.Radio(
                        [('high', HIGH), ('low', LOW)], value=HIGH, label='Frequencies to take away', min_width=200)
                    radius = gr.Slider(0, 1, step=1, label='Radius in cycles per image', scale=2, min_width=300)
                results = gr.HTML('<div class="zoo"><p>The network is loading.</p></div>')

        shown = [look, message, network, facts, radius, results]
        one = dict(concurrency_id='network', concurrency_limit=1, show_progress='minimal', api_visibility='private')
        for event, *given in ((page.load,), (network.input,), (removed.input,), (file.upload, file)):
            event(choose, [network, removed, look, *given], shown, **one)
        for button, photo in zip(buttons, PHOTOS):
            button.click(
                lambda network, removed, look, photo=photo: choose(network, removed, look, photo),
                [network, removed, look], shown, **one)
        radius.input(
            draw, [look, removed, radius], results, trigger_mode='always_last', **dict(one, show_progress='hidden'))
    return page


def launch(page: Any = None, **options: Any) -> Tuple[Any, str]:
    """Start the page. Gradio's analytics and its public address are off.

    Args:
        page: What `make_page` returns; built here if None.
        **options: Further arguments of Gradio's `launch`, such as `server_name`.

    Returns:
        The page, and its address on this machine.

    Raises:
        RuntimeError: Gradio is not installed.
        OSError: The port is in use.
    """
    gr = require_extra('gradio', 'app', 'The page')
    page = page or make_page()
    system = ['system-ui', 'sans-serif']  # fonts of the machine: the page asks nothing of other hosts
    theme = gr.themes.Base(primary_hue='indigo', neutral_hue='slate', font=system, font_mono=['ui-monospace']).set(
        body_text_color_subdued='*neutral_600', body_text_color_subdued_dark='*neutral_300')
    _, address, _ = page.launch(
        share=False, quiet=True, ssr_mode=False, footer_links=[], theme=theme, css=html.CSS, max_file_size='100mb',
        **options)
    return page, address
