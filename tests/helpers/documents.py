"""Python examples in the documentation."""

import re

from tasks.machine import ROOT


def example_in(document: str, name: str) -> str:
    (code,) = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return code
