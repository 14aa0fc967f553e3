"""What the house tests read: the modules of zcluster as syntax trees, and the imports in them."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Source:
    """One file of Python."""

    path: Path
    name: str  # dotted, of the module
    text: str

    @property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, str(self.path))

    def imports(self) -> Iterator[tuple[str, int]]:
        """Every imported module with its line, in functions too, but not what only type checkers import."""
        tree = self.tree
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                for alias in node.names:
                    whole = f"{origin}.{alias.name}"
                    yield (whole if _is_module(whole) else origin), node.lineno

    def _origin(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module after `from`."""
        if node.level == 0:
            return node.module or ""
        parts = self.name.split(".")
        package = parts[: len(parts) - node.level + (self.path.name == "__init__.py")]
        return ".".join([*package, *([node.module] if node.module else [])])


def _is_module(dotted: str) -> bool:
    """Tell whether `from a import b` imports a module of ours and not a name in one."""
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@cache
def sources() -> tuple[Source, ...]:
    """Every module of the package."""
    found = []
    for path in sorted((ROOT / "zcluster").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append(Source(path, ".".join(parts).removesuffix(".__init__"), path.read_text(encoding="utf-8")))
    assert len(found) > 10, "the package was not found"
    return tuple(found)
