"""Read a student's cell before it runs: what reaches round the question, and what a person reads.

An answer is judged by what it gives, so most of what can be written is allowed. Refused is what
would fetch the answer instead (the library and the checks hold it) or change who judges: in such a
cell nothing is run, and the student is told the line. Not all can be seen by reading; ``looks``
names what is only unusual.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

REACHING = {"importlib", "ctypes", "gc", "inspect", "builtins", "runpy", "pkgutil", "zipimport"}
CALLS = {
    "__import__", "exec", "eval", "compile", "globals", "locals", "vars", "__builtins__",
    "__loader__", "__spec__",
}  # fmt: skip
ATTRIBUTES = {
    "_getframe", "_current_frames", "settrace", "setprofile", "f_back", "f_globals", "f_locals",
    "tb_frame", "gi_frame", "cr_frame", "__globals__", "__builtins__", "__subclasses__",
    "__loader__", "__spec__", "__import__", "import_module", "meta_path", "__dict__", "__code__",
    "kill", "killpg", "getppid", "fork", *REACHING,
}  # fmt: skip
UNUSUAL = {
    "os", "subprocess", "socket", "urllib", "http", "requests", "pathlib", "shutil", "glob", "io",
    "multiprocessing", "threading", "signal", "resource", "sys", "atexit", "tempfile", "pickle",
}  # fmt: skip
UNUSUAL_CALLS = {"open", "getattr", "setattr", "delattr", "input", "breakpoint", "type"}
OVERRIDES = {"__eq__", "__torch_function__", "__torch_dispatch__", "__array__", "__class__"}


def parse(source: str) -> ast.Module | None:
    """Return the tree of a cell, or None where it is no Python (running it then says why)."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def imported(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """Give (module, name taken from it, name it gets here) of an import statement."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name, "", alias.asname or alias.name.split(".")[0]
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield "." * node.level + (node.module or ""), alias.name, alias.asname or alias.name


def root(node: ast.AST) -> str:
    """Return the name at the bottom of ``name.a.b[c]``, or nothing."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


@dataclass
class Given:
    """Hold what a lab's own cells, solutions included, import and use of the library."""

    imports: set[tuple[str, str, str]] = field(default_factory=set)
    names: set[str] = field(default_factory=set)  # all that is imported, torch too
    library: set[str] = field(default_factory=set)  # what of it is the library's
    used: set[str] = field(default_factory=set)  # "data.encode"

    @classmethod
    def read(cls, sources: Iterable[str]) -> Given:
        """Read the cells of a lab."""
        trees = [tree for source in sources if (tree := parse(source))]
        given = cls()
        for node in (node for tree in trees for node in ast.walk(tree)):
            for module, name, here in imported(node):
                given.imports.add((module, name, here))
                given.names.add(here)
                if module.split(".")[0] == "moe_lite":
                    given.library.add(here)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                given.used.add(f"{node.value.id}.{node.attr}")
        return given


def refusals(source: str, given: Given) -> list[str]:
    """List what in a student's cell is not allowed, each with its line; nothing if it may run."""
    if (tree := parse(source)) is None:
        return []
    nodes, found = list(ast.walk(tree)), []
    own = {here for node in nodes for _, _, here in imported(node)}
    local = {node.arg for node in nodes if isinstance(node, ast.arg)}
    local |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    modules = {name for name in given.library - local - {"checks"} if name[0].islower()}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    checked = {  # checks.check_x(...) as a statement of its own: what the notebook's cells do
        id(node.value.func.value)
        for node in nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr.startswith("check_")
    }
    for node in nodes:
        what = ""
        for module, name, here in imported(node):
            top = module.lstrip(".").split(".")[0]
            if top in REACHING or module.startswith("."):
                what = f"imports {module}"
            elif name in ATTRIBUTES or (top == "sys" and name == "modules"):
                what = f"imports {module}.{name}"
            elif top == "moe_lite" and (module, name, here) not in given.imports:
                what = f"imports {'.'.join(filter(None, (module, name)))}, of the library"
        if isinstance(node, ast.Name):
            if node.id in CALLS:
                what = f"uses {node.id}"
            elif node.id == "checks" and id(node) not in checked:
                what = "uses the checks other than by calling one"
        elif isinstance(node, ast.Attribute):
            base = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in ATTRIBUTES or (node.attr == "modules" and id(node) not in called):
                what = f"uses .{node.attr}"
            elif base in modules and f"{base}.{node.attr}" not in given.used:
                what = f"uses {base}.{node.attr}, of the library"
            if isinstance(node.ctx, ast.Store | ast.Del) and root(node) in given.names | own:
                what = f"changes {ast.unparse(node)}, which is not its own"
        if what:
            found.append(f"line {getattr(node, 'lineno', 1)} {what}")
    return list(dict.fromkeys(found))


def looks(source: str) -> list[str]:
    """List what in a student's cell is allowed and unusual, for a person to read."""
    if (tree := parse(source)) is None:
        return []
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for module, _, _ in imported(node):
            if module.split(".")[0] in UNUSUAL:
                found.append(f"line {line} imports {module}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in UNUSUAL_CALLS:
                found.append(f"line {line} calls {node.func.id}")
        elif isinstance(node, ast.FunctionDef) and node.name in OVERRIDES:
            found.append(f"line {line} defines {node.name}")
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"line {line} catches every exception")
        elif isinstance(node, ast.Constant) and "solutions/" in str(node.value):
            found.append(f"line {line} names the folder of solutions")
    return list(dict.fromkeys(found))
