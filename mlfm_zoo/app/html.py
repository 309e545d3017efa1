"""Parts of the page as HTML: answers with bars, curves, and maps of the memory."""

import base64
import io
from html import escape
from typing import List, Optional, Sequence

import torch
from PIL import Image, ImageOps

from .answers import HIGH, Curves, Memory, Pair

__all__ = ['CSS', 'draw_answers', 'draw_classes', 'draw_curves', 'draw_memories', 'draw_message', 'draw_photo']

# The two networks have a color each, and the line of the second is dashed. Dark mode is Gradio's class.
CSS = '''
:root { --with: #4338ca; --without: #b45309; }
.dark { --with: #a5b4fc; --without: #fbbf24; }
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.zoo { color: var(--body-text-color); line-height: 1.45; }
.zoo h1 { font-size: 1.6rem; font-weight: 650; margin: 0 0 .2rem; }
.zoo h2 { font-size: 1rem; font-weight: 650; margin: 0 0 .4rem; color: inherit; }
.zoo p { margin: 0 0 .5rem; }
.zoo .small { font-size: .875rem; color: var(--body-text-color-subdued); }
.zoo .alert { border-left: 3px solid var(--without); padding: .3rem .7rem; margin: 0; }
.zoo img { border-radius: .3rem; display: block; margin: 0; width: 100%; }
.zoo figure { margin: 0; min-width: 0; }
.zoo figcaption { font-size: .8125rem; margin-top: .3rem; overflow-wrap: anywhere;
  color: var(--body-text-color-subdued); }
.zoo.results { display: grid; gap: 1.5rem; }
.zoo .top { display: grid; gap: 1rem; grid-template-columns: minmax(5rem, 14rem) minmax(12rem, 1fr); }
.zoo .columns { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.zoo ol { list-style: none; margin: 0; padding: 0; }
.zoo li { position: relative; display: flex; gap: .75rem; justify-content: space-between; padding: .25rem .5rem;
  margin: 0 0 .25rem; border-radius: .25rem; overflow: hidden; }
.zoo li::before { content: ''; position: absolute; inset: 0 auto 0 0; width: var(--share); opacity: .2;
  background: var(--color); border-radius: .25rem; }
.zoo li > * { position: relative; overflow-wrap: anywhere; }
.zoo li > :last-child { font-variant-numeric: tabular-nums; white-space: nowrap; }
.zoo .with { --color: var(--with); }
.zoo .without { --color: var(--without); }
.zoo h2.with, .zoo h2.without { border-bottom: 2px solid var(--color); padding-bottom: .25rem; }
.zoo h2.without { border-bottom-style: dashed; }
.zoo .curve { display: grid; grid-template-columns: auto 1fr; gap: 0 .5rem; }
.zoo .curve svg { display: block; width: 100%; height: 9rem; overflow: visible; }
.zoo .axis { font-size: .8125rem; display: flex; justify-content: space-between; font-variant-numeric: tabular-nums;
  color: var(--body-text-color-subdued); }
.zoo .axis.y { flex-direction: column; text-align: right; line-height: 1; margin: -.4rem 0; }
.zoo .axis.x { grid-column: 2; padding-top: .25rem; }
.zoo svg path, .zoo svg line { fill: none; stroke: var(--border-color-primary); vector-effect: non-scaling-stroke; }
.zoo svg .line { stroke: var(--color); stroke-width: 2.5; }
.zoo svg .line.without { stroke-dasharray: 7 4; }
.zoo svg .now { stroke: var(--body-text-color); stroke-width: 1.5; }
.zoo .maps { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(6rem, 1fr)); }
.zoo .maps img { image-rendering: pixelated; aspect-ratio: 1; }
.zoo summary { cursor: pointer; }
#photos { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
#photos button { flex-direction: column; gap: .25rem; padding: .3rem; min-width: 0; width: 100%; font-weight: 400; }
#photos button img { width: 100%; height: auto; margin: 0; border-radius: .3rem; }
#network input { padding-right: 1.5rem; text-overflow: ellipsis; }
'''


def draw_message(text: str) -> str:
    """A sentence about what went wrong or was converted; nothing for no text."""
    return f'<div class="zoo"><p class="alert" role="alert">{escape(text)}</p></div>' if text else ''


def draw_photo(picture: Image.Image, caption: str) -> str:
    """The photograph as the networks see it, with a caption."""
    alt = 'The photograph as the networks see it'
    return (f'<figure><img src="{_address(picture, "JPEG")}" alt="{alt}">'
            f'<figcaption>{escape(caption)}</figcaption></figure>')


def draw_answers(title: str, kind: str, labels: Sequence[str], probabilities: Optional[torch.Tensor]) -> str:
    """The five most probable classes of one network, with bars.

    Args:
        title: Heading.
        kind: 'with' or 'without', which gives the color.
        labels: Class of each output.
        probabilities: Probability of each class; None if there is no such network.

    Returns:
        A section.
    """
    head = f'<section><h2 class="{kind}">{title}</h2>'
    if probabilities is None:
        return (f'{head}<p>This network has no weights that were trained without memory, so there is nothing to '
                'compare with.</p></section>')
    values, indices = probabilities.topk(min(5, len(probabilities)))
    rows = ''.join(
        f'<li style="--share: {100 * value:.1f}%"><span>{escape(labels[index])}</span><span>{100 * value:.1f} %</span>'
        '</li>' for value, index in zip(values.tolist(), indices.tolist()))
    return f'{head}<ol class="{kind}">{rows}</ol></section>'


def draw_curves(curves: Curves, removed: str, radius: float) -> str:
    """Probability over the radius, with a line at the radius of the slider."""
    full = curves.radii[-1]
    lines = [('with', 'with memory', curves.memory)]
    if curves.trunk:
        lines.insert(0, ('without', 'without memory', curves.trunk))
    paths = ''.join(
        f'<path class="line {kind}" d="M' + ' L'.join(
            f'{1000 * r / full:.1f} {100 - 100 * v:.2f}' for r, v in zip(curves.radii, values)) + '"/>'
        for kind, _, values in lines)
    now = 1000 * radius / full
    summary = '; '.join(f'{name} from {100 * values[0]:.0f} % at radius 0 to {100 * values[-1]:.0f} % at radius {full}'
                        for _, name, values in reversed(lines))
    label = escape(curves.label)
    what = 'above' if removed == HIGH else 'up to'
    return f'''<section><h2>Probability of “{label}”</h2>
<div class="curve"><div class="axis y"><span>100 %</span><span>50 %</span><span>0 %</span></div>
<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="Probability of {label}: {summary}">
<path d="M0 0 H1000 M0 50 H1000 M0 100 H1000"/>{paths}<line class="now" x1="{now:.1f}" x2="{now:.1f}" y1="0" y2="100"/>
</svg><div class="axis x"><span>0</span><span>{full // 2}</span><span>{full}</span></div></div>
<p class="small">Frequencies {what} the radius are taken away. The upright line is the slider.</p></section>'''


def draw_memories(written: Sequence[Memory]) -> str:
    """Each unit's memory as its channel mean, in its own range from dark to bright."""
    figures: List[str] = []
    for memory in written:
        low, high = memory.mean.min(), memory.mean.max()
        gray = ((memory.mean - low) / (high - low).clamp(min=1e-12) * 255).round().byte()
        picture = ImageOps.colorize(Image.fromarray(gray.numpy()), '#440154', '#fde725', '#21918c')
        shape = ' × '.join(map(str, memory.shape))
        figures.append(
            f'<figure><img src="{_address(picture, "PNG")}" alt="Memory after {escape(memory.layer)}">'
            f'<figcaption>{escape(memory.layer)}<br>{shape}</figcaption></figure>')
    return f'''<section><h2>What the memory holds</h2>
<p class="small">After each memory unit: the mean over the channels, from dark (low) to bright (high). The numbers are
channels × height × width.</p><div class="maps">{"".join(figures)}</div></section>'''


def draw_classes(pair: Pair) -> str:
    """Where the weights come from, and the classes that they know."""
    checkpoint = pair.checkpoint
    figures = [('Measured', checkpoint.measured), ('Reported', checkpoint.reported)]
    accuracy = ' '.join(f'{verb}: {value:.2f} % ({name}).' for verb, found in figures
                        for name, value in list(found.items())[:1])
    origin = checkpoint.origin[0].upper() + checkpoint.origin[1:]
    labels = ', '.join(pair.labels)
    return f'''<div class="zoo small"><p>{escape(origin)}. {escape(accuracy)}</p>
<details><summary>It knows {len(pair.labels)} classes, and calls anything else by the closest.</summary>
<p>{escape(labels)}</p></details></div>'''


def _address(picture: Image.Image, form: str) -> str:
    """A picture as an address that holds it."""
    file = io.BytesIO()
    picture.convert('RGB').save(file, form)
    return f'data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'
