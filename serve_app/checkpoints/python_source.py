"""What a Python module defines, read from its source: nothing of it is run."""

import ast
import importlib.util
from pathlib import Path


def find_problem(module_name: str, name: str) -> str | None:
    """Why `module_name` has no `name`; None: it has, or only running it would tell."""
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        return f"there is no module {module_name} to import; install it, or correct the path"
    if found.origin is None or not found.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(found.origin).read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        return f"{module_name} cannot be read ({error}); mend it"
    names = _names_in(tree)
    if names is None or name in names:
        return None
    return f"{module_name} has no {name}; correct the path"


def _names_in(tree: ast.Module) -> set[str] | None:
    """All names that are bound anywhere in a module; None: some come from elsewhere, and are not known."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            if node.name == "__getattr__":
                return None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return None if "*" in names else names
