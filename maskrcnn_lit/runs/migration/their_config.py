"""The config of another framework, and what has been read of it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.runs.migration.python_config import DUMPED, Unread


class Setting(NamedTuple):
    """One row of the table that `import` writes.

    Attributes:
        theirs: NAME=VALUE of the other framework.
        ours: NAME=VALUE of `maskrcnn-lit train`; "": there is none.
        difference: what is different here; "": nothing.
    """

    theirs: str
    ours: str = ""
    difference: str = ""


class TheirConfig:
    """A nested config. `take` and its kind read a value by its path, and remember that. Those that
    read a value raise UserError where it is not plain data.

    Attributes:
        options: of `maskrcnn-lit train`, in order: name -> value.
        table: what became of each setting.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.options: dict[str, Any] = {}
        self.table: list[Setting] = []
        self._read: set[str] = set()

    def has(self, path: str) -> bool:
        return self._find(path, _MISSING) is not _MISSING

    def take(self, path: str, default: Any = None) -> Any:
        """The value at `path`, "model.backbone.depth", or the other framework's `default`."""
        self._read.add(path)
        value = self._find(path, default)
        for inner, where in _unread(path, value):
            raise _not_plain(inner, where)
        return plain(value)

    def part(self, path: str) -> Any:
        """The dict or list at `path`, for its keys and length; None: there is none. Values in it
        may be Unread, and it does not count as read.
        """
        value = self._find(path, None)
        if isinstance(value, Unread):
            raise _not_plain(path, value)
        return value

    def ignore(self, *paths: str) -> None:
        """Count settings as read: any value will do."""
        self._read.update(paths)

    def same(self, path: str, option: str, default: Any = None) -> Any:
        """Set `option` to the value at `path`, and return it."""
        return self.as_option(path, option, self.take(path, default))

    def as_option(self, path: str, option: str, value: Any, difference: str = "") -> Any:
        """Set `option` to `value`, which the setting at `path` means here."""
        self.options[option] = value
        self._note(path, f"{option}={text(value)}", difference)
        return value

    def differs(self, path: str, difference: str, ours: str = "") -> None:
        """Note how the setting at `path` is different here."""
        self._note(path, ours, difference)

    def _note(self, path: str, ours: str, difference: str) -> None:
        value = self._find(path, _MISSING)
        self._read.add(path)
        theirs = f"{path}, by default" if value is _MISSING else f"{path}={text(plain(value))}"
        self.table.append(Setting(theirs, ours, difference))

    def only(self, path: str, expected: Collection[Any], default: Any, advice: str) -> Any:
        """The value at `path`, which must be one of `expected`: the model has no other.

        Raises:
            UserError: it is another one; the message ends with `advice`.
        """
        value = self.take(path, default)
        if value not in [plain(one) for one in expected]:
            allowed = " or ".join(text(one) for one in expected)
            raise UserError(f"{path}={text(value)} cannot be imported, {allowed} can: {advice}")
        return value

    def expect(
        self,
        implied: Collection[str],
        required: Mapping[str, Any],
        training: Mapping[str, Any],
        advice: str,
    ) -> None:
        """Read settings of which our model has one value.

        Args: implied: any value will do. required: detections depend on it. training: another value
        is noted as a difference. advice: ends the message of a refusal.

        Raises:
            UserError: a required setting has another value.
        """
        self.ignore(*implied)
        for path, value in required.items():
            self.only(path, (value,), value, advice)
        for path, value in training.items():
            if self.take(path, value) != value:
                self.differs(path, text(value))

    def left(self, *parts: str) -> Iterator[Setting]:
        """The settings in `parts` that nothing has read."""
        for part in parts:
            for path, value in _leaves(part, plain(self._find(part, {}))):
                if not any(path == one or path.startswith(f"{one}.") for one in self._read):
                    yield Setting(f"{path}={text(value)}", "", "not imported")

    def _find(self, path: str, default: Any) -> Any:
        value: Any = self.values
        names = path.split(".")
        for number, name in enumerate(names):
            if isinstance(value, Unread):
                raise _not_plain(".".join(names[:number]), value)
            if isinstance(value, Mapping) and name in value:
                value = value[name]
            elif isinstance(value, (list, tuple)) and name.isdigit() and int(name) < len(value):
                value = value[int(name)]
            else:
                return default
        return value


_MISSING = object()


def _not_plain(path: str, value: Unread) -> UserError:
    return UserError(f"{path} at {value.where} is not plain data: write its value, or {DUMPED}")


def _unread(path: str, value: Any) -> Iterator[tuple[str, Unread]]:
    """The values in `value` that are not plain data, and their paths."""
    if isinstance(value, Unread):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _unread(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _unread(f"{path}.{number}", item)


def plain(value: Any) -> Any:
    """Tuples become lists, as in yaml."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, Unread):
        return [plain(item) for item in value]
    return value


def text(value: Any, most: int = 80) -> str:
    """A value as in yaml, on one line."""
    if isinstance(value, Unread):
        return f"not plain data ({value.where})"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    if isinstance(value, (list, tuple)):
        shown = f"[{', '.join(text(item) for item in value)}]"
    elif isinstance(value, float):
        shown = f"{value:.6g}"
    else:
        shown = str(value)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, list) and _has_dicts(value):
        for number, item in enumerate(value):
            yield from _leaves(f"{path}.{number}", item)
    else:
        yield path, value


def _has_dicts(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(_has_dicts(item) for item in value)
    )
