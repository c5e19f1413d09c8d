"""Reads a python config of MMDetection by its syntax tree. Nothing in it is executed.

A config assigns plain data: literals, `dict(...)`, earlier names, sums and products of them. It
inherits from the files in `_base_`, or in a block `with read_base():`.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError

MAX_DEPTH = 20  # files that inherit from one another
MAX_BYTES = 2**20  # of a file
MAX_ITEMS = 100_000  # of a list or text that a product makes

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class Unread(NamedTuple):
    """A value that is not plain data, and where it is."""

    where: str  # FILE, line N


class Name(str):
    """The name of a class or function that a config imports, as text."""


class _NotPlain(Exception):
    """An expression that is not plain data."""


def read_python_config(path: Path) -> dict[str, Any]:
    """The variables of a config as nested dicts, lists, tuples, numbers and texts.

    A value that is not plain data, such as a function call, becomes `Unread`.

    Raises:
        UserError: a file is missing, is not Python, is too large, or inherits from itself.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = path.absolute()
    if path in above or len(above) > MAX_DEPTH:
        raise UserError(f"{path} inherits from itself: remove it from its _base_")
    if not path.is_file():
        raise UserError(
            f"the config {path} does not exist: give the file beside those that it inherits from"
        )
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has over {MAX_BYTES:,} bytes: give a config of MMDetection")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{path} is not a python file ({error}): give a config of MMDetection"
        ) from error
    reader = _Reader(path, above)
    for statement in tree.body:
        reader.run(statement)
    return reader.result()


class _Reader:
    """The variables of one file, statement by statement."""

    def __init__(self, path: Path, above: tuple[Path, ...]) -> None:
        self.path, self.above = path, (*above, path)
        self.base: dict[str, Any] = {}  # from the files that it inherits from
        self.own: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        return merged(self.base, {k: v for k, v in self.own.items() if not isinstance(v, Name)})

    def run(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.With):
            for inner in statement.body:
                self._inherit(inner)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                name = alias.asname or alias.name
                self.own[name] = Name(alias.name)
        elif isinstance(statement, ast.Assign):
            value = self._value(statement.value)
            for target in statement.targets:
                self._assign(target, value)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            self._update(statement.value)

    def _inherit(self, statement: ast.stmt) -> None:
        """`from .._base_.models.x import *` of a block `with read_base()`."""
        if not isinstance(statement, ast.ImportFrom) or statement.level == 0:
            return
        folder = self.path.parent
        for _ in range(statement.level - 1):
            folder = folder.parent
        file = folder.joinpath(*(statement.module or "").split(".")).with_suffix(".py")
        values = _read(file, self.above)
        chosen = [alias.name for alias in statement.names]
        if chosen != ["*"]:
            values = {name: values[name] for name in chosen if name in values}
        self.base |= values

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name) and target.id == "_base_":
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, (list, tuple)) or isinstance(names, Unread):
                raise UserError(
                    f"{self.path} has a _base_ that is not plain data: write file names"
                )
            for name in names:
                self.base = merged(self.base, _read(self.path.parent / str(name), self.above))
        elif isinstance(target, ast.Name):
            self.own[target.id] = value
        elif isinstance(target, ast.Subscript):  # model['backbone'] = ...
            inside = self._holder_and_key(target)
            if inside is not None:
                holder, key = inside
                holder[key] = value

    def _holder_and_key(self, target: ast.Subscript) -> tuple[Any, Any] | None:
        try:
            holder, key = self._plain(target.value), self._plain(target.slice)
        except _NotPlain:
            return None
        fits = isinstance(holder, dict) or (
            isinstance(holder, list) and isinstance(key, int) and -len(holder) <= key < len(holder)
        )
        return (holder, key) if fits else None

    def _update(self, call: ast.Call) -> None:
        """`model.update(dict(...))` and `model.update(backbone=...)`."""
        function = call.func
        if not isinstance(function, ast.Attribute) or function.attr != "update":
            return
        try:
            holder = self._plain(function.value)
            new = self._called_dict(call)
        except _NotPlain:
            return
        if isinstance(holder, dict):
            changed = merged(holder, new)
            holder.clear()
            holder.update(changed)

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression, or `Unread`."""
        try:
            return self._plain(node)
        except (_NotPlain, RecursionError, TypeError):
            return Unread(f"{self.path}, line {node.lineno}")

    def _plain(self, node: ast.expr) -> Any:
        kind = type(node).__name__
        read = getattr(self, f"_plain_{kind.lower()}", None)
        if read is None:
            raise _NotPlain
        return read(node)

    def _plain_constant(self, node: ast.Constant) -> Any:
        return _with_base(node.value, self.base)

    def _plain_list(self, node: ast.List) -> list[Any]:
        return [self._value(item) for item in node.elts]

    def _plain_tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._value(item) for item in node.elts)

    def _plain_dict(self, node: ast.Dict) -> dict[Any, Any]:
        pairs = zip(node.keys, node.values, strict=True)
        return {self._plain(key): self._value(value) for key, value in pairs if key}

    def _plain_set(self, node: ast.Set) -> Any:
        """{{_base_.model}}"""
        match node.elts:
            case [ast.Set(elts=[inner])]:
                return self._plain(inner)
        raise _NotPlain

    def _plain_call(self, node: ast.Call) -> Any:
        match node:
            case ast.Call(func=ast.Name(id="dict")):
                return self._called_dict(node)
            case ast.Call(func=ast.Name(id="list"), args=[argument]):
                return list(self._plain(argument))
            case ast.Call(func=ast.Name(id="tuple"), args=[argument]):
                return tuple(self._plain(argument))
        raise _NotPlain

    def _plain_unaryop(self, node: ast.UnaryOp) -> Any:
        if not isinstance(node.op, ast.USub):
            raise _NotPlain
        return -_number(self._plain(node.operand))

    def _plain_name(self, node: ast.Name) -> Any:
        if node.id in self.own:
            return self.own[node.id]
        if node.id == "_base_":
            return self.base
        if node.id in self.base:
            return self.base[node.id]
        raise _NotPlain

    def _plain_attribute(self, node: ast.Attribute) -> Any:
        """_base_.model"""
        holder = self._plain(node.value)
        if isinstance(holder, dict) and node.attr in holder:
            return holder[node.attr]
        raise _NotPlain

    def _plain_subscript(self, node: ast.Subscript) -> Any:
        try:
            return self._plain(node.value)[self._plain(node.slice)]
        except (KeyError, IndexError, TypeError):
            raise _NotPlain from None

    def _plain_binop(self, node: ast.BinOp) -> Any:
        function = _BINARY.get(type(node.op))
        left, right = self._plain(node.left), self._plain(node.right)
        if function is None:
            raise _NotPlain
        if isinstance(node.op, ast.Mult):
            for items, times in ((left, right), (right, left)):
                if hasattr(items, "__len__") and len(items) * _number(times) > MAX_ITEMS:
                    raise _NotPlain
        try:
            return function(left, right)
        except (TypeError, ZeroDivisionError, OverflowError):
            raise _NotPlain from None

    def _called_dict(self, call: ast.Call) -> dict[Any, Any]:
        """dict(a=1, **other)"""
        value: dict[Any, Any] = {}
        for given in (*call.args, *(k.value for k in call.keywords if k.arg is None)):
            content = self._plain(given)
            if not isinstance(content, Mapping):
                raise _NotPlain
            value |= content
        return value | {k.arg: self._value(k.value) for k in call.keywords if k.arg is not None}


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)):
        raise _NotPlain
    return value


def _with_base(value: Any, base: Mapping[str, Any]) -> Any:
    """The text "{{_base_.model.neck}}" is that value of the files that a config inherits from."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not (text.startswith("{{") and text.endswith("}}")):
        return value
    names = text[2:-2].strip().split(".")
    inner: Any = base
    for name in names[1:]:
        if not isinstance(inner, Mapping) or name not in inner:
            raise _NotPlain
        inner = inner[name]
    return inner


def merged(base: Any, new: Any) -> Any:
    """`new` over `base`, dict by dict; `_delete_=True` in a dict drops what it inherits."""
    if not isinstance(base, Mapping) or not isinstance(new, Mapping):
        return merged({}, new) if isinstance(new, Mapping) else new
    values = {key: value for key, value in new.items() if key != "_delete_"}
    if new.get("_delete_") is True:
        base = {}
    return dict(base) | {key: merged(base.get(key), value) for key, value in values.items()}
