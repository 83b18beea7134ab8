"""Every Python block of the README runs, in order, in one namespace."""

import re
from pathlib import Path

from layer_energy.layers import layer_type
from layer_energy.layers.base import _CLAIMS, _REGISTRY, count

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    namespace = {"__name__": "readme"}
    try:
        for block in blocks:
            exec(compile(block, "README.md", "exec"), namespace)
        assert layer_type("sort").claims == ("sort",)
    finally:
        _REGISTRY.pop("sort", None)
        _CLAIMS.pop("sort", None)
        count.cache_clear()
    assert "conv2d" in capsys.readouterr().out
