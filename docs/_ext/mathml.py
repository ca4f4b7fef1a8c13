"""Formulas as MathML, which browsers typeset themselves: no JavaScript, no fonts to load."""

import html
import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

#: LaTeX that docutils does not know, and what to read instead: fences stretch by themselves.
SUBSTITUTES = {r"\\[Bb]igg?[lr]?(?![A-Za-z])": "", r"\\dots(?![A-Za-z])": r"\\ldots"}


def mathml(node: nodes.Element, display: bool) -> str:
    """Return a formula in LaTeX as MathML; what cannot be read is a warning, and is shown as is."""
    source = node.astext().strip()
    for pattern, substitute in SUBSTITUTES.items():
        source = re.sub(pattern, substitute, source)
    try:
        return str(latex2mathml.tex2mathml(source, as_block=display))
    except MathError as error:
        logger.warning("cannot typeset %s: %s", source, error, location=node)
        return f"<code>{html.escape(source)}</code>"


def inline(self: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def block(self: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="math">{mathml(node, display=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
