"""Calls go down: check the layers of the C sources and of the Python package.

C: extension/README lists the layers, low to high, with the files of each.  A file may
include headers of its own layer and of lower ones; a header belongs to the file of its
name.  Exactly one file knows how the library gets into the storage manager.

Python: a module that imports plpy or psycopg is an executor.  Modules that do not are
pure logic, and must not import an executor.  The list in __init__.py names each module.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = ROOT / "extension"

INCLUDE = re.compile(r'^\s*#\s*include\s+"((?:ab_|agent_branch)\w*\.h)"', re.MULTILINE)
COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', re.DOTALL)

ATTACH = "ab_attach"
PATCHING = re.compile(r"\b(smgrsw|mprotect|f_smgr)\b")
DATABASE_MODULES = {"plpy", "psycopg"}


def layers(readme: str) -> dict[str, int]:
    """Base name of each file -> its layer; 'ab_sql_*' stands for a prefix."""
    listed: dict[str, int] = {}
    number = -1
    inside = False
    for line in readme.splitlines():
        if line.startswith("Layers, low to high"):
            inside = True
        elif inside and line.startswith("    "):
            words = line.split()
            if len(line) - len(line.lstrip()) == 4:
                number += 1
                words = words[1:]
            for word in words:
                name = word.removesuffix(".c")
                if re.fullmatch(r"(ab_\w+\*?|agent_branch)", name):
                    listed[name] = number
        elif inside and line.strip() and listed:
            break
    return listed


def layer_of(name: str, listed: dict[str, int]) -> int | None:
    if name in listed:
        return listed[name]
    for pattern, number in listed.items():
        if pattern.endswith("*") and name.startswith(pattern[:-1]):
            return number
    return None


def check_c() -> Iterator[str]:
    listed = layers((EXTENSION / "README").read_text())
    if not listed:
        yield "extension/README: no list of layers"
        return
    files = sorted([*EXTENSION.glob("src/*.c"), *EXTENSION.glob("include/*.h")])
    headers = {path.stem for path in files if path.suffix == ".h"}
    for path in files:
        where = path.relative_to(ROOT)
        own = layer_of(path.stem, listed)
        if own is None:
            yield f"{where}: extension/README lists no layer for it"
            continue
        text = path.read_text()
        for included in INCLUDE.findall(text):
            name = included.removesuffix(".h")
            other = layer_of(name, listed)
            if name not in headers:
                yield f"{where}: includes {included}, which does not exist"
            elif other is None:
                yield f"{where}: includes {included}, which has no layer"
            elif other > own:
                yield f"{where}: includes {included} of a higher layer"
        code = COMMENT.sub(" ", text)
        if path.stem != ATTACH:
            for found in sorted(set(PATCHING.findall(code))):
                yield f"{where}: {found} is known to {ATTACH}.c only"
    for name in listed:
        if not name.endswith("*") and not any(path.stem == name for path in files):
            yield f"extension/README: {name} is listed but does not exist"


def imports(path: Path, package: str) -> Iterator[str]:
    """Absolute names of what a module of the package imports, lazily or not."""
    here = [package, *path.relative_to(ROOT / "python" / package).with_suffix("").parts]
    if here[-1] == "__init__":
        here.pop()
        here.append("")
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def check_python() -> Iterator[str]:
    package = "agent_branch"
    root = ROOT / "python" / package
    uses: dict[str, set[str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = [package, *path.relative_to(root).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        uses[".".join(parts)] = set(imports(path, package))

    listed = set(re.findall(r"``(\w+)``", (root / "__init__.py").read_text()))
    for module in sorted(uses):
        if module != package and module.rpartition(".")[2] not in listed:
            yield f"python: the list of modules in __init__.py does not name {module}"

    executors = {
        module
        for module, names in uses.items()
        if any(name.split(".")[0] in DATABASE_MODULES for name in names)
    }
    for module, names in uses.items():
        tops = {name.split(".")[0] for name in names}
        if tops >= DATABASE_MODULES:
            yield f"python: {module} imports both plpy and psycopg"
        if "plpy" in tops:
            outside = tops - {package, "plpy", ""} - set(sys.stdlib_module_names)
            if outside:
                yield f"python: {module} runs in the server and imports {sorted(outside)}"
    # A module that only executors' callers (front ends) may import says so by its name.
    front_ends = {f"{package}.cli", f"{package}.__main__", f"{package}.server"}
    for module, names in uses.items():
        if module in executors or module in front_ends:
            continue
        for name in sorted(names & executors):
            yield f"python: {module} is pure logic and imports the executor {name}"


def main() -> int:
    problems = [*check_c(), *check_python()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
