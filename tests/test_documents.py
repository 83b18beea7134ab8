"""What the documents show can be typed: their Python runs, their command lines exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import layer_energy
from layer_energy.cli import app
from layer_energy.layers.base import _CLAIMS, _REGISTRY, count
from layer_energy.meters import base as meters

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path):
    lines = "".join(blocks(path, "bash")).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["layer-energy"]]


def parse(words):
    """Parse a command line and its options, without running it."""
    name, command = "layer-energy", get_command(app)
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, info_name=name)
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words))


@pytest.fixture
def registry():
    """Layer types and meters that a document registers are gone after it."""
    registries = (_REGISTRY, _CLAIMS, meters._REGISTRY)
    before = [{k: list(v) if isinstance(v, list) else v for k, v in r.items()} for r in registries]
    yield
    for registered, known in zip(registries, before, strict=True):
        registered.clear()
        registered.update(known)
    count.cache_clear()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_python_blocks_run_in_order(path, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": path.stem}
    for i, block in enumerate(blocks(path, "python")):
        exec(compile(block, f"{path.name}, block {i + 1}", "exec"), namespace)
    if path.stem == "README":
        assert "conv2d" in capsys.readouterr().out
    if path.stem == "layers":
        assert "sort" in _REGISTRY


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_exist_with_these_options(path):
    found = commands(path)
    assert len(found) > 5 or path.stem != "README"
    for words in found:
        parse(words)


def test_a_wrong_option_is_seen():
    with pytest.raises(Exception, match="No such option"):
        parse(["predict", "vgg16", "--no-such-option"])


def test_the_reference_has_every_public_name():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"^::: layer_energy\.(\S+)$", text, re.MULTILINE))
    homes = layer_energy._HOMES
    missing = {name for name in homes if not {name, homes[name], f"{homes[name]}.{name}"} & shown}
    assert not missing
