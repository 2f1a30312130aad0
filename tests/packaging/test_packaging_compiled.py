"""Rules of compiled modules (`hatch_build.py`) that neither mypy nor the interpreter would tell of."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from hatch_build import COMPILED

SOURCE = Path(__file__).parents[2] / "src" / "ostiary"


@pytest.mark.parametrize("module", COMPILED)
def test_a_name_is_bound_to_one_type_of_exception(module: str) -> None:
    for function in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        types: defaultdict[str, set[str]] = defaultdict(set)
        for handler in ast.walk(function):
            if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
                types[handler.name].add(ast.unparse(handler.type))
        doubled = {name: found for name, found in types.items() if len(found) > 1}
        assert not doubled, f"{function.name} in line {function.lineno}"
