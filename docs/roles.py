"""Cross-references of docstrings, ``:func:`walk```, as links of the built site.

A name that the site does not document is shown as code.
"""

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


class Roles(Extension):
    """Replaces the roles in every docstring; found by griffe through ``mkdocs.yml``."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda m: _link(obj, *m.groups()), obj.docstring.value)


def _link(obj: Object, short: str, name: str) -> str:
    try:
        target = obj.resolve(name)
    except NameResolutionError:
        target = name
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
