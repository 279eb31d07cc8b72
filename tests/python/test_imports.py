"""The package's modules form no ring, neither by what they import at once nor by what they import later."""

import ast

from conftest import ROOT

PACKAGE = ROOT / "shim" / "python" / "codecllm"
MODULES = {path.stem for path in PACKAGE.glob("*.py")}


def named(name):
    """The module of the package that codecllm.NAME means: "__init__" where it is no module."""
    return name if name in MODULES else "__init__"


def imports_of(module):
    """Modules of the package that this one imports, also in functions, and those that it names for a later import."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {named(parts[1] if len(parts) > 1 else "") for parts in names if parts[0] == "codecllm"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed here"
            parts = (node.module or "").split(".")
            if parts == ["codecllm"]:
                found |= {named(alias.name) for alias in node.names}
            elif parts[0] == "codecllm":
                found.add(named(parts[1]))
        elif isinstance(node, ast.Constant) and module == "__init__" and node.value in MODULES:
            found.add(node.value)  # import_module("codecllm." + ...)
    return found - {module}


def ring(edges):
    """One ring, as a list of modules; empty: there is none."""
    done = set()

    def visit(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for other in sorted(edges[module]):
            found = visit(other, [*path, module])
            if found:
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module, []))), [])


def test_imports_form_no_ring():
    edges = {module: imports_of(module) for module in MODULES}
    assert {"files", "linear", "model", "pretrained", "tensor", "transformers_integration"} <= edges["__init__"]
    assert "transformers_integration" in edges["pretrained"], "imports in functions count"
    assert ring(edges) == []


def test_a_ring_is_found():
    assert ring({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
