"""A Markdown document as one HTML file that needs nothing beside it."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

PAGE = Template((Path(__file__).parent / "page.html").read_text())
LONG = 40  # characters from which a cell's text has some width, else it has many lines
UNBROKEN = 24  # characters from which a word may be broken within, such as the id of a run
WIDE = 12  # columns from which the lines of a cell are broken at any space
KEPT_WHOLE = re.compile(r"\[[-+\d., ]+\]|\(n = \d+\)")  # an interval, and of how few seeds


def to_html(markdown: str, directory: Path) -> str:
    """The page, with the pictures in `directory` inside it; its title is the document's first heading."""

    def embedded(name: re.Match[str]) -> str:
        picture = base64.b64encode((directory / name[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    title = markdown.splitlines()[0].lstrip("# ")
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("td_open", _cell_open)
    body = KEPT_WHOLE.sub(r"<span>\g<0></span>", parser.render(markdown))
    return PAGE.substitute(title=title, body=re.sub(r'src="([\w-]+\.png)"', embedded, body))


def _table_open(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """The tag that opens a table, with the class `wide` if it has many columns."""
    kinds = [token.type for token in tokens[index:]]
    if kinds[: kinds.index("thead_close")].count("th_open") >= WIDE:
        tokens[index].attrJoin("class", "wide")
    return renderer.renderToken(tokens, index, options, env)


def _cell_open(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """The tag that opens a table's cell, with the classes `long` or `unbroken` if the cell's text is."""
    text = "".join(part.content for part in tokens[index + 1].children or ())
    if len(text) >= LONG:
        tokens[index].attrJoin("class", "long")
    if any(len(word) >= UNBROKEN for word in text.split()):
        tokens[index].attrJoin("class", "unbroken")
    return renderer.renderToken(tokens, index, options, env)
