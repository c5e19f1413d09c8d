"""Reads a python config of MMDetection by its syntax tree. Nothing in it is executed.

A config assigns plain data: literals, `dict(...)`, earlier names, arithmetic, comparisons, texts
with values in them, and a few functions of these, such as `len`. It inherits from the files in
`_base_`, dict by dict, or it imports their variables in a block `with read_base():`. A statement
that might change a setting in another way is refused.
"""

import ast
import copy
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError

MAX_DEPTH = 20  # files that inherit from one another
MAX_BYTES = 2**20  # of a file
MAX_ITEMS = 100_000  # of the lists and texts that the expressions of a file make
MAX_BITS = 1024  # of a whole number
MAX_VALUES, MAX_NESTING = 1_000_000, 100  # of the settings of a file

DUMPED = "give the dumped config, which the training wrote to its folder in work_dirs"

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,
}

_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    **{
        ast.Eq: operator.eq,
        ast.NotEq: operator.ne,
        ast.Is: operator.is_,
        ast.IsNot: operator.is_not,
    },
    **{ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.In: lambda item, items: item in items, ast.NotIn: lambda item, items: item not in items},
}

_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    **{"int": int, "float": float, "round": round, "abs": abs},
    **{"min": min, "max": max, "sum": sum},
}

_UNREAD_METHODS = ("clear", "popitem", "remove", "reverse", "sort")  # these change a dict or list
_METHODS: dict[type, tuple[str, ...]] = {
    dict: ("update", "merge", "get", "pop", "setdefault", "copy"),
    list: ("append", "extend", "insert", "pop", "copy"),
}

# Statements that change no setting.
_HARMLESS = (ast.Import, ast.ImportFrom, ast.Assert, ast.Pass, ast.Raise)
_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


class Unread(NamedTuple):
    """A value that is not plain data, and where it is."""

    where: str  # FILE, line N


class Name(str):
    """The name of a class or function that a config imports, as text."""


class _Inherited(dict[Any, Any]):
    """A dict of a file that a config inherits from: its method `update` merges dict by dict, as
    that of mmengine's ConfigDict does.
    """


class _NotPlain(Exception):
    """An expression that is not plain data; its text says where, if that is elsewhere."""


_FAULTS = (_NotPlain, RuntimeError, TypeError, ValueError, ArithmeticError, LookupError)


def read_python_config(path: Path) -> dict[str, Any]:
    """The variables of a config as nested dicts, lists, tuples, numbers and texts.

    A value that is not plain data, such as a function call, becomes `Unread`.

    Raises:
        UserError: a file is missing, is not Python, is too large, or inherits from itself, or a
            statement that may change settings cannot be read.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    path = path.absolute()
    if path in above or len(above) > MAX_DEPTH:
        raise UserError(f"{path} inherits from itself: remove it from its _base_")
    if not path.is_file():
        raise UserError(
            f"the config {path} does not exist: give the file beside those that it inherits from, "
            "or the dumped config in work_dirs"
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
    try:
        for statement in tree.body:
            reader.run(statement)
        return reader.result()
    except RecursionError as error:
        raise UserError(f"{path} nests its values too deep: {DUMPED}") from error


class _Expressions:
    """The values of the expressions of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base: dict[str, Any] = {}  # of the files in _base_
        self.own: dict[str, Any] = {}
        self.made = 0  # items of lists and texts, at most MAX_ITEMS

    def at(self, node: ast.AST) -> str:
        return f"{self.path}, line {getattr(node, 'lineno', '?')}"

    def value(self, node: ast.expr, key: Any = None) -> Any:
        """The value of an expression, or `Unread`. key: of the dict that it is in; the name of a
        class is plain data in `type` alone.
        """
        try:
            value = self.plain(node)
        except _FAULTS as error:
            return Unread(
                str(error) if isinstance(error, _NotPlain) and str(error) else self.at(node)
            )
        return Unread(self.at(node)) if isinstance(value, Name) and key != "type" else value

    def plain(self, node: ast.expr) -> Any:
        """The value of an expression. Raises one of _FAULTS if it is not plain data."""
        read = getattr(self, f"_plain_{type(node).__name__.lower()}", None)
        if read is None:
            raise _NotPlain
        value = read(node)
        if isinstance(value, Unread):
            raise _NotPlain(value.where)
        return value

    def _plain_constant(self, node: ast.Constant) -> Any:
        return _with_base(node.value, self.base)

    def _plain_list(self, node: ast.List | ast.Tuple) -> list[Any]:
        items: list[Any] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                items += self._several(self.plain(item.value))
            else:
                items.append(self.value(item))
        return items

    def _plain_tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._plain_list(node))

    def _plain_dict(self, node: ast.Dict) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:  # {**other}
                values |= self._mapping_of(value)
            else:
                name = self.plain(key)
                values[name] = self.value(value, name)
        return values

    def _plain_set(self, node: ast.Set) -> Any:
        """{{_base_.model}}"""
        match node.elts:
            case [ast.Set(elts=[inner])]:
                return self.plain(inner)
        raise _NotPlain

    def _plain_listcomp(self, node: ast.ListComp | ast.GeneratorExp) -> list[Any]:
        match node.generators:
            case [ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[], is_async=0)]:
                items = self._several(self.plain(source))
            case _:
                raise _NotPlain
        outer = self.own
        made = []
        try:
            for item in items:
                self.own = {**outer, name: item}
                made.append(self.value(node.elt))
        finally:
            self.own = outer
        return made

    _plain_generatorexp = _plain_listcomp

    def _plain_call(self, node: ast.Call) -> Any:
        name = ast.unparse(node.func)
        if name == "dict":
            return self._called_dict(node)
        if name in ("deepcopy", "copy.deepcopy"):
            value = self.plain(node.args[0])
            self._make(_check_size(self.path, value))
            return copy.deepcopy(value)
        if isinstance(node.func, ast.Attribute):
            return self._method(node, self.plain(node.func.value), node.func.attr)
        if node.keywords or name in self.own:
            raise _NotPlain
        return self._function(name, [self.plain(argument) for argument in node.args])

    def _function(self, name: str, arguments: list[Any]) -> Any:
        if name == "range":
            numbers = range(*arguments)
            self._make(len(numbers))
            return list(numbers)
        if name in ("list", "tuple", "len"):
            [items] = arguments
            if name == "len":
                return len(items)
            self._make(len(items))
            return list(items) if name == "list" else tuple(items)
        if name not in _OF_NUMBERS or not arguments:
            raise _NotPlain
        for number in arguments[0] if isinstance(arguments[0], (list, tuple)) else arguments:
            _number(number)
        return _OF_NUMBERS[name](*arguments)

    def _method(self, node: ast.Call, holder: Any, name: str) -> Any:
        kind = dict if isinstance(holder, dict) else type(holder)
        if name not in _METHODS.get(kind, ()):
            raise _NotPlain
        if name in ("update", "merge"):
            new = self._called_dict(node)
            self._make(_check_size(self.path, new))
            return _update(holder, new, deep=name == "merge" or isinstance(holder, _Inherited))
        if name == "copy":
            self._make(len(holder))
            return copy.copy(holder)
        if node.keywords:
            raise _NotPlain
        arguments = [self.value(argument) for argument in node.args]
        if name == "extend":
            arguments = [self._several(*arguments)]
        return getattr(holder, name)(*arguments)

    def _called_dict(self, call: ast.Call) -> dict[Any, Any]:
        """dict(a=1, **other)"""
        value: dict[Any, Any] = {}
        for given in (*call.args, *(k.value for k in call.keywords if k.arg is None)):
            value |= self._mapping_of(given)
        named = ((k.arg, k.value) for k in call.keywords if k.arg is not None)
        return value | {name: self.value(given, name) for name, given in named}

    def _plain_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.plain(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if not isinstance(node.op, ast.USub):
            raise _NotPlain
        return -_number(value)

    def _plain_ifexp(self, node: ast.IfExp) -> Any:
        return self.plain(node.body if self.plain(node.test) else node.orelse)

    def _plain_boolop(self, node: ast.BoolOp) -> Any:
        first, *others = node.values
        value = self.plain(first)
        for other in others:
            if bool(value) == isinstance(node.op, ast.Or):
                break
            value = self.plain(other)
        return value

    def _plain_compare(self, node: ast.Compare) -> bool:
        values = [self.plain(operand) for operand in (node.left, *node.comparators)]
        for value in values:
            self._make(_check_size(self.path, value))
        pairs = zip(node.ops, values, values[1:], strict=False)
        return all(_COMPARED[type(kind)](left, right) for kind, left, right in pairs)

    def _plain_joinedstr(self, node: ast.JoinedStr) -> str:
        """f"{root}/train" """
        text = "".join(self._inserted(part) for part in node.values)
        self._make(len(text))
        return text

    def _inserted(self, part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        if not isinstance(part, ast.FormattedValue) or part.format_spec or part.conversion != -1:
            raise _NotPlain
        value = self.plain(part.value)
        if not isinstance(value, (str, int, float)) or isinstance(value, Name):
            raise _NotPlain
        return str(value)

    def _plain_name(self, node: ast.Name) -> Any:
        for names in (self.own, {"_base_": self.base}, self.base):
            if node.id in names:
                return names[node.id]
        raise _NotPlain

    def _plain_attribute(self, node: ast.Attribute) -> Any:
        """_base_.model, or nn.BatchNorm2d of an imported nn."""
        holder = self.plain(node.value)
        return Name(node.attr) if isinstance(holder, Name) else _mapping(holder)[node.attr]

    def _plain_subscript(self, node: ast.Subscript) -> Any:
        value = self.plain(node.value)[self.plain(node.slice)]
        if isinstance(node.slice, ast.Slice):
            self._make(len(value))
        return value

    def _plain_slice(self, node: ast.Slice) -> slice:
        ends = (node.lower, node.upper, node.step)
        return slice(*(None if end is None else self.plain(end) for end in ends))

    def _plain_binop(self, node: ast.BinOp) -> Any:
        left, right = self.plain(node.left), self.plain(node.right)
        if isinstance(node.op, (ast.Mod, ast.Pow)):
            _number(left), _number(right)
        if isinstance(node.op, ast.Pow) and (abs(left) > 10**6 or abs(right) > 100):
            raise _NotPlain
        if isinstance(node.op, ast.Mult):
            for items, times in ((left, right), (right, left)):
                if hasattr(items, "__len__"):
                    self._make(len(items) * _number(times))
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._make(len(left) + len(right))
        return _result(_BINARY[type(node.op)](left, right))

    def _mapping_of(self, node: ast.expr) -> Mapping[Any, Any]:
        values = _mapping(self.plain(node))
        self._make(len(values))
        return values

    def _several(self, items: Any) -> list[Any]:
        if not isinstance(items, (list, tuple)) or isinstance(items, Unread):
            raise _NotPlain
        self._make(len(items))
        return list(items)

    def _make(self, count: float) -> None:
        if self.made + count > MAX_ITEMS:
            raise _NotPlain
        self.made += max(0, int(count))


class _Reader(_Expressions):
    """The variables of one file, statement by statement."""

    def __init__(self, path: Path, above: tuple[Path, ...]) -> None:
        super().__init__(path)
        self.above = (*above, path)
        self.functions: set[str] = set()  # that the file defines

    def result(self) -> dict[str, Any]:
        own = {name: value for name, value in self.own.items() if not isinstance(value, Name)}
        for values in (self.base, own):
            _check_size(self.path, values)
        return merged(self.base, own)

    def run(self, statement: ast.stmt) -> None:
        """Raises UserError if a statement that may change settings cannot be read."""
        if any(self._changes_unread(inner) for inner in ast.walk(statement)):
            raise self._refused(statement)
        run = getattr(self, f"_run_{type(statement).__name__.lower()}", None)
        if run is not None:
            run(statement)
        elif not _is_harmless(statement):
            raise self._refused(statement)

    def _changes_unread(self, node: ast.AST) -> bool:
        """Whether an expression changes settings in a way that is not read."""
        match node:
            case ast.NamedExpr():
                return True
            case ast.Call(func=ast.Attribute(attr=name, value=holder)):
                return name in _UNREAD_METHODS and not self._is_foreign(holder)
        return False

    def _refused(self, node: ast.stmt | ast.expr) -> UserError:
        shown = ast.unparse(node).splitlines()[0][:60]
        return UserError(
            f"{self.at(node)}, '{shown}', cannot be read, since nothing in a config is executed: "
            f"write plain values, or {DUMPED}"
        )

    def _run_with(self, statement: ast.With) -> None:
        name = ast.unparse(statement.items[0].context_expr).partition("(")[0]
        if name.rpartition(".")[2] == "read_base":
            for inner in statement.body:
                self._import(inner)
        elif not _is_harmless(statement):
            raise self._refused(statement)

    def _import(self, statement: ast.stmt) -> None:
        """`from .._base_.models.x import *` of a block `with read_base()`."""
        if isinstance(statement, ast.Pass):
            return
        if not isinstance(statement, ast.ImportFrom) or statement.level == 0:
            shown = ast.unparse(statement).splitlines()[0][:60]
            raise UserError(
                f"{self.at(statement)}, '{shown}', cannot be read: read_base() may import files "
                f"beside this one (from .x import *), not installed packages; {DUMPED}"
            )
        folder = self.path.parent
        for _ in range(statement.level - 1):
            folder = folder.parent
        file = folder.joinpath(*(statement.module or "").split(".")).with_suffix(".py")
        values = _inherited(_read(file, self.above))
        for alias in statement.names:
            if alias.name == "*":
                self.own |= values
            elif alias.name in values:
                self.own[alias.asname or alias.name] = values[alias.name]
            else:
                raise UserError(
                    f"{self.at(statement)} imports {alias.name}, which {file} does not have: "
                    f"{DUMPED}"
                )

    def _run_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if _inherits(statement):  # outside of read_base, MMDetection refuses it, too
            raise self._refused(statement)
        for alias in statement.names:
            self.own[alias.asname or alias.name.partition(".")[0]] = Name(alias.name)

    _run_importfrom = _run_import

    def _run_functiondef(self, statement: ast.FunctionDef | ast.ClassDef) -> None:
        """A function may not change settings; its value is not read."""
        for inner in ast.walk(statement):
            stored = isinstance(getattr(inner, "ctx", None), ast.Store)
            if isinstance(inner, ast.Global) or (stored and not isinstance(inner, ast.Name)):
                raise self._refused(statement)
        self.functions.add(statement.name)
        self.own[statement.name] = Name(statement.name)

    _run_classdef = _run_functiondef

    def _run_assign(self, statement: ast.Assign) -> None:
        value = self.value(statement.value, "type")
        for target in statement.targets:
            self._assign(target, value)

    def _run_annassign(self, statement: ast.AnnAssign) -> None:
        if statement.value is not None:
            self._assign(statement.target, self.value(statement.value, "type"))

    def _run_augassign(self, statement: ast.AugAssign) -> None:
        both = ast.BinOp(statement.target, statement.op, statement.value)
        value = self.value(ast.copy_location(both, statement))
        before = self.value(statement.target)
        if isinstance(before, list) and isinstance(value, list):
            before[:] = value  # in place, for all its names
        elif isinstance(before, dict) and isinstance(value, dict):
            before.update(value)
        else:
            self._assign(statement.target, value)

    def _run_delete(self, statement: ast.Delete) -> None:
        for target in statement.targets:
            if isinstance(target, ast.Name):
                self.own.pop(target.id, None)
            elif not self._is_foreign(target):
                holder, key = self._holder_and_key(target)
                if isinstance(holder, dict) and key not in holder:
                    raise self._refused(statement)
                del holder[key]

    def _run_expr(self, statement: ast.Expr) -> None:
        """`model.update(dict(...))`, `print(...)`, a docstring."""
        called = any(isinstance(inner, ast.Call) for inner in ast.walk(statement))
        if not called or self._is_foreign(statement.value):
            return
        try:
            if not isinstance(statement.value, ast.Call):
                raise _NotPlain
            self.plain(statement.value)
        except _FAULTS:
            raise self._refused(statement) from None

    def _is_foreign(self, node: ast.expr) -> bool:
        """Whether a call or a target cannot reach the settings."""
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            return True
        reach = {"_base_", "exec", "globals", "locals", "vars"} | self.functions
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        values = [self.own.get(name, self.base.get(name)) for name in names]
        return not (names & reach) and not any(map(_is_container, values))

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name) and target.id == "_base_":
            self._inherit(target, value)
        elif isinstance(target, ast.Name):
            self.own[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            self._assign_each(target, value)
        elif not self._is_foreign(target):
            holder, key = self._holder_and_key(target)
            holder[key] = value

    def _inherit(self, target: ast.Name, value: Any) -> None:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or isinstance(names, Unread):
            raise UserError(f"{self.path} has a _base_ that is not plain data: write file names")
        for name in names:
            if "::" in str(name):
                raise UserError(
                    f"{self.at(target)} inherits from {name}, and installed packages are not "
                    f"read: {DUMPED}"
                )
            below = _read(self.path.parent / str(name), self.above)
            self.base = _inherited(merged(self.base, below))

    def _assign_each(self, target: ast.Tuple | ast.List, value: Any) -> None:
        """a, b = 3, 4"""
        if isinstance(value, Unread):
            value = [value] * len(target.elts)
        if not isinstance(value, (list, tuple)) or len(value) != len(target.elts):
            raise self._refused(target)
        for inner, item in zip(target.elts, value, strict=True):
            self._assign(inner, item)

    def _holder_and_key(self, target: ast.expr) -> tuple[Any, Any]:
        """The dict or list of a target model['backbone'] or model.backbone, and its key."""
        try:
            match target:
                case ast.Attribute(value=value, attr=key):
                    holder = _mapping(self.plain(value))
                case ast.Subscript(value=value, slice=index):
                    holder, key = self.plain(value), self.plain(index)
                    if not isinstance(holder, dict):
                        holder[key]  # fails where the list does not have it
                case _:
                    raise _NotPlain
        except _FAULTS:
            raise self._refused(target) from None
        if not isinstance(holder, (dict, list)) or isinstance(key, (slice, list, dict)):
            raise self._refused(target)
        return holder, key


def _is_harmless(statement: ast.stmt) -> bool:
    """Whether a statement, with those in it, changes no setting."""
    inner = [node for node in ast.walk(statement) if isinstance(node, ast.stmt)]
    return not any(_inherits(node) for node in inner) and all(
        isinstance(node, (*_HARMLESS, *_BLOCKS)) or _is_shown(node) for node in inner
    )


def _inherits(node: ast.stmt) -> bool:
    """Whether it imports from a file beside this one, or is a block `with read_base()`."""
    match node:
        case ast.ImportFrom(level=level):
            return level > 0
        case ast.With(items=[ast.withitem(context_expr=expression), *_]):
            return "read_base" in ast.unparse(expression)
    return False


def _is_shown(node: ast.stmt) -> bool:
    """A docstring, or `print(...)`."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
            return True
    return False


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple)) and not isinstance(value, Unread)


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)):
        raise _NotPlain
    return value


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _NotPlain
    return value


def _result(value: Any) -> Any:
    if isinstance(value, complex) or (isinstance(value, int) and value.bit_length() > MAX_BITS):
        raise _NotPlain
    return value


def _update(holder: dict[Any, Any], new: Mapping[Any, Any], *, deep: bool) -> None:
    """holder.update(new), in place. deep: dict by dict; `_delete_=True` drops what is there."""
    if deep and new.get("_delete_") is True:
        holder.clear()
    for key, value in new.items():
        inner = holder.get(key)
        if deep and isinstance(inner, dict) and isinstance(value, dict):
            _update(inner, value, deep=True)
        elif not deep or key != "_delete_":
            holder[key] = _inherited(value) if deep else value


def _inherited(value: Any) -> Any:
    """A copy of `value` with each dict as _Inherited."""
    if isinstance(value, dict):
        return _Inherited({key: _inherited(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)) and not isinstance(value, Unread):
        return type(value)([_inherited(item) for item in value])
    return value


def _check_size(path: Path, values: Any) -> int:
    """How many values there are. Raises UserError if settings contain themselves, or each other
    many times.
    """
    count, stack = 0, [(values, 0)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, Mapping):
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            stack += [(item, depth + 1) for item in value]
        count += 1
        if count > MAX_VALUES or depth > MAX_NESTING:
            raise UserError(
                f"{path} has over {MAX_VALUES:,} settings, or over {MAX_NESTING} in each other: "
                "give a config of MMDetection"
            )
    return count


def _with_base(value: Any, base: Mapping[str, Any]) -> Any:
    """The text "{{_base_.model.neck}}" is that value of the files that a config inherits from."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not (text.startswith("{{") and text.endswith("}}")):
        return value
    first, *names = text[2:-2].strip().split(".")
    if first != "_base_":
        raise _NotPlain
    inner: Any = base
    for name in names:
        inner = _mapping(inner)[name]
    return inner


def merged(base: Any, new: Any) -> Any:
    """`new` over `base`, dict by dict; `_delete_=True` in a dict drops what it inherits."""
    if not isinstance(base, Mapping) or not isinstance(new, Mapping):
        return merged({}, new) if isinstance(new, Mapping) else new
    values = {key: value for key, value in new.items() if key != "_delete_"}
    if new.get("_delete_") is True:
        base = {}
    return dict(base) | {key: merged(base.get(key), value) for key, value in values.items()}
