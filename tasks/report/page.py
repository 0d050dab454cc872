"""A Markdown document as one HTML file that needs nothing beside it."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2rem auto; max-width: 95rem; padding: 0 1rem; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ margin-top: 2.5rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #d8dee4; padding: .35rem .8rem; white-space: nowrap; }}
td.long {{ white-space: normal; min-width: 17rem; }}
th {{ border-bottom: 2px solid #1f2328; }}
td {{ font-variant-numeric: tabular-nums; }}
tbody tr:hover {{ background: #f6f8fa; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

LONG = 40  # characters that a line of a cell is broken from: else the columns after it leave the window


def to_html(markdown: str, directory: Path) -> str:
    """The page, with the pictures in `directory` inside it; its title is the document's first heading."""

    def embedded(name: re.Match[str]) -> str:
        picture = base64.b64encode((directory / name[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    title = markdown.splitlines()[0].lstrip("# ")
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("td_open", _cell_open)
    body = parser.render(markdown)
    return PAGE.format(title=title, body=re.sub(r'src="([\w-]+\.png)"', embedded, body))


def _cell_open(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """The tag that opens a table's cell, with the class `long` if the cell's text is."""
    text = "".join(part.content for part in tokens[index + 1].children or ())
    if len(text) >= LONG:
        tokens[index].attrJoin("class", "long")
    return renderer.renderToken(tokens, index, options, env)
