"""The public names are those that are documented, and come without torch where they can."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline


def test_every_public_name_exists_and_has_a_docstring():
    for name in pipeline.__all__:
        found = getattr(pipeline, name)
        assert name == "SoftLabels" or found.__doc__, name


def test_the_three_lists_of_names_agree():
    tree = ast.parse(Path(pipeline.__file__).read_text())
    typed = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == set(pipeline.__all__) == set(pipeline._MODULE_OF)
    assert len(pipeline.__all__) == len(set(pipeline.__all__))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'open_cash'"):
        pipeline.open_cash  # noqa: B018


def test_opening_a_cache_does_not_import_torch():
    code = "import sys, pipeline; pipeline.open_cache, pipeline.verify, pipeline.TopK; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
