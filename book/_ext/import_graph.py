"""What a chapter really uses: the library files it imports (followed through), what it asks for by name (techniques,
rewards, models), the data it names.

Static: read with `ast`, nothing is imported. A chapter's cells run again when `fingerprint` changes.
"""

import ast
import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jupytext

PACKAGE = "surveylib"
SHIPPED = ("worlds/shapes/checkpoints", "rewards/learned/checkpoints")  # folders of models, in the package
DATA_SUFFIXES = {".json", ".js", ".css", ".html", ".txt", ".csv", ".parquet", ".mplstyle", ".jsonl"}


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name -> file for every module of the library under ``root``."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The dotted name a `from ... import` starts from, relative dots resolved."""
    if not node.level:
        return node.module or ""
    base = module.split(".")
    base = base[: len(base) - node.level + (1 if is_package else 0)]
    return ".".join([*base, *(node.module.split(".") if node.module else [])])


def names_used(tree: ast.AST, module: str = "", is_package: bool = False) -> tuple[set[str], set[str]]:
    """Dotted names imported anywhere in a syntax tree (functions included), and all its string constants."""
    imported, strings = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            imported |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 200:
            strings.add(node.value)
    return imported, strings


def tables(tree: ast.AST) -> dict[str, str]:
    """Key -> module of the dictionaries in a syntax tree that say where a name is found: ``{"ddpo": "a.b.ddpo:DDPO"}``,
    the value a string or an f-string of the file's own constants."""
    known = {target.id: node.value.value for node in ast.walk(tree) if isinstance(node, ast.Assign)
             and isinstance(node.value, ast.Constant) for target in node.targets if isinstance(target, ast.Name)}

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values)
        return str(known.get(node.id, "") if isinstance(node, ast.Name) else getattr(node, "value", ""))

    return {key.value: text(value).partition(":")[0] for node in ast.walk(tree) if isinstance(node, ast.Dict)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(value, ast.JoinedStr | ast.Constant) and ":" in text(value)}


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


@lru_cache(maxsize=4096)
def _parse(path: Path, stamp: int) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def closure(start: set[str], files: dict[str, Path], named: set[str] = frozenset(),
            ) -> tuple[set[str], set[str], set[str]]:
    """Library modules reached from the dotted names in ``start``; the other packages imported on the way; all strings.

    Importing a.b.c runs a/__init__ and a/b/__init__ too, so these count. A string that is a module's dotted name counts
    as an import of it (lazy attributes), and so does a key of a table of modules (`tables`) where it stands outside the
    table, here or in ``named``; except in the catalog, which names modules as data.
    """
    seen, outside, strings, found, todo = set(), set(), set(named), {}, set(start)
    while todo:
        name = todo.pop()
        if name.split(".")[0] != PACKAGE:
            outside.add(name.split(".")[0])
            continue
        for module in _parents(name) & set(files) - seen:
            seen.add(module)
            path = files[module]
            tree = _parse(path, path.stat().st_mtime_ns)
            used, texts = names_used(tree, module, path.name == "__init__.py")
            if not module.startswith(f"{PACKAGE}.catalog"):
                table = {key: place for key, place in tables(tree).items() if place in files}
                found |= table
                texts -= set(table)
                strings |= texts
                used |= texts & set(files)
            todo |= used
        todo |= {found[text] for text in strings & set(found)} - seen
    return seen, outside, strings


def chapter_tree(path: Path) -> ast.AST:
    """The syntax tree of a chapter's code cells. Magics and unfinished cells are left out of the tree."""
    body = []
    for cell in jupytext.read(path).cells:
        if cell.cell_type == "code":
            lines = [" " * (len(x) - len(x.lstrip())) + "pass" if x.lstrip().startswith(("%", "!")) else x
                     for x in cell.source.splitlines()]
            try:
                body += ast.parse("\n".join(lines)).body
            except SyntaxError:
                continue  # execution will name the cell
    return ast.Module(body=body, type_ignores=[])


def uses(path: Path, root: Path) -> tuple[list[Path], list[str]]:
    """Files whose content decides what a chapter prints, and the versions of the outside packages it reaches."""
    files = module_files(root)
    imported, strings = names_used(chapter_tree(path))
    modules, outside, mentioned = closure(imported | (strings & set(files)), files, strings)
    found = {files[m] for m in modules}
    for module in modules:  # package data beside the code
        if files[module].name == "__init__.py":
            found |= {f for f in files[module].parent.iterdir() if f.suffix in DATA_SUFFIXES}
    for folder in (root / PACKAGE / place for place in SHIPPED):
        shipped = {place.name for place in folder.iterdir() if place.is_dir()} if folder.is_dir() else set()
        found |= {f for name in mentioned & shipped for f in (folder / name).rglob("*") if f.is_file()}
    for name in strings:  # data of the repository named in the chapter itself
        if "/" in name and not name.startswith(("/", ".")):
            place = root / name
            found |= {place} if place.is_file() else {f for f in place.glob("**/*") if f.is_file()}
    return sorted(found), sorted(outside)


@lru_cache(maxsize=4096)
def _digest(path: Path, stamp: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def fingerprint(path: Path, root: Path) -> str:
    """Twelve hex digits that change when a file or a package version changes that the chapter uses."""
    files, outside = uses(path, root)
    total = hashlib.sha256()
    for file in files:
        stat = file.stat()
        total.update(f"{file.relative_to(root)}:{_digest(file, stat.st_mtime_ns, stat.st_size)}\n".encode())
    for package in outside:
        total.update(f"{package}=={_version(package)}\n".encode())
    return total.hexdigest()[:12]
