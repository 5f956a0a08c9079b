"""Reads the imports of a source tree, without importing anything, and judges them by a table.

The table is the drawing of the project's arrows: which room may use which, and what a pure room
must never reach. A room is a module, or all modules below a package written as "package.*".
"""

import ast
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

# Outside things that carry I/O, time or chance into a room.
IO = ("_socket", "asyncio", "gevent", "select", "selectors", "socket", "ssl")
IMPURE = frozenset((*IO, "_random", "random", "secrets", "time"))


@dataclass(frozen=True)
class Import:
    """One import; `lazy` if it happens only when a function is called, or for the type checker."""

    target: str
    line: int
    lazy: bool


@dataclass(frozen=True)
class Rules:
    """Which project modules a room may import; the first pattern that fits a module counts."""

    arrows: Mapping[str, tuple[str, ...]]
    pure: tuple[str, ...] = ()
    # Rooms in which an outside package is forbidden even inside a function.
    banned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Modules whose import must not load these, by whatever way.
    quiet: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Modules that must not be reached, by whatever way, from those of the pattern.
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Tree:
    """The modules below `root` that belong to the given houses, and their imports."""

    def __init__(self, root: Path, houses: tuple[str, ...]) -> None:
        self.houses = houses
        files = {_module(root, path): path for h in houses for path in (root / h).rglob("*.py")}
        self.modules = dict(sorted(files.items()))
        packages = {name for name, path in files.items() if path.name == "__init__.py"}
        self.imports = {
            name: list(_imports(path, name, name in packages, files.keys()))
            for name, path in self.modules.items()
        }

    def inside(self, target: str) -> bool:
        return target.partition(".")[0] in self.houses

    def project_targets(self, module: str, lazy: bool = True) -> set[str]:
        """The project's modules that this one imports, with or without those in functions."""
        found = self.imports.get(module, [])
        return {i.target for i in found if self.inside(i.target) and (lazy or not i.lazy)}


def fits(module: str, pattern: str) -> bool:
    """Whether a module is the pattern's, or below it where the pattern ends in ".*"."""
    stem = pattern.removesuffix(".*")
    return module == stem or (stem != pattern and module.startswith(stem + "."))


def any_fits(module: str, patterns: tuple[str, ...]) -> bool:
    return any(fits(module, pattern) for pattern in patterns)


def violations(tree: Tree, rules: Rules) -> list[str]:
    """Every arrow and every import that the rules forbid, each as a sentence."""
    checks = (
        _forbidden_arrows(tree, rules),
        _circles(tree),
        _impurities(tree, rules),
        _banned(tree, rules),
        _loud(tree, rules),
        _mixed(tree, rules),
    )
    return [sentence for check in checks for sentence in check]


def _forbidden_arrows(tree: Tree, rules: Rules) -> Iterator[str]:
    for module in tree.modules:
        room = next((pattern for pattern in rules.arrows if fits(module, pattern)), None)
        if room is None:
            yield f"{module} is in no room: draw it into the table of arrows"
            continue
        for found in tree.imports[module]:
            if tree.inside(found.target) and not any_fits(found.target, rules.arrows[room]):
                yield f"{module}:{found.line} imports {found.target}, which {room} may not"


def _circles(tree: Tree) -> Iterator[str]:
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> Iterator[str]:
        if module in way:
            yield "circle: " + " -> ".join([*way[way.index(module) :], module])
        elif module not in done:
            for target in sorted(tree.project_targets(module)):
                yield from walk(target, [*way, module])
            done.add(module)

    for module in tree.modules:
        yield from walk(module, [])


def _impurities(tree: Tree, rules: Rules) -> Iterator[str]:
    for module in tree.modules:
        if any_fits(module, rules.pure):
            for way, outside in _reached(tree, module, lazy=True):
                if outside in IMPURE:
                    yield f"pure {module} reaches {outside}: {' -> '.join(way)}"


def _banned(tree: Tree, rules: Rules) -> Iterator[str]:
    for pattern, outsiders in rules.banned.items():
        for module in tree.modules:
            for found in tree.imports[module]:
                if fits(module, pattern) and found.target.partition(".")[0] in outsiders:
                    yield f"{module}:{found.line} imports {found.target}, never in {pattern}"


def _loud(tree: Tree, rules: Rules) -> Iterator[str]:
    for pattern, outsiders in rules.quiet.items():
        for module in tree.modules:
            if fits(module, pattern):
                for way, outside in _reached(tree, module, lazy=False):
                    if outside in outsiders:
                        yield f"importing {module} loads {outside}: {' -> '.join(way)}"


def _mixed(tree: Tree, rules: Rules) -> Iterator[str]:
    for pattern, strangers in rules.apart.items():
        for module in tree.modules:
            if fits(module, pattern):
                for way in _ways(tree, module, lazy=True):
                    if any_fits(way[-1], strangers):
                        yield f"{pattern} reaches {way[-1]}: {' -> '.join(way)}"


def _reached(tree: Tree, module: str, lazy: bool) -> Iterator[tuple[list[str], str]]:
    """The outside packages that a module reaches through the project, each with the way there."""
    for way in _ways(tree, module, lazy):
        for found in tree.imports.get(way[-1], []):
            if not tree.inside(found.target) and (lazy or not found.lazy):
                yield way, found.target.partition(".")[0]


def _ways(tree: Tree, start: str, lazy: bool) -> Iterator[list[str]]:
    """A shortest way from a module to each project module it imports, itself the first."""
    seen, ways = {start}, [[start]]
    for way in ways:
        yield way
        fresh = sorted(tree.project_targets(way[-1], lazy) - seen)
        seen.update(fresh)
        ways.extend([*way, target] for target in fresh)


def _module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path, module: str, package: bool, known: Set[str]) -> Iterator[Import]:
    home = module if package else module.rpartition(".")[0]
    for node, lazy in _nodes(ast.parse(path.read_text(encoding="utf-8"), str(path)), lazy=False):
        for target in _targets(node, home, known):
            if target != module:
                yield Import(target, node.lineno, lazy)


def _nodes(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.stmt | ast.expr, bool]]:
    """All statements and expressions; `lazy` for those that importing the module does not run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.expr):
            yield child, lazy
        yield from _nodes(child, lazy or _runs_later(child))


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _targets(node: ast.AST, home: str, known: Set[str]) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=name, names=names, level=level):
            base = _absolute(name or "", home, level)
            return [_member(base, alias.name, known) for alias in names]
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            return [name] if _called(func) in ("import_module", "__import__") else []
    return []


def _absolute(name: str, home: str, level: int) -> str:
    if level == 0:
        return name
    parts = home.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


def _member(base: str, name: str, known: Set[str]) -> str:
    """`from base import name` means the module base.name if there is one, otherwise base."""
    return f"{base}.{name}" if f"{base}.{name}" in known else base


def _called(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
