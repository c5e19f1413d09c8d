"""Composes yaml files and overrides into one config; the only use of Hydra by the commands.

`compose` wraps Hydra's compose API with errors that name the next step, `build` (instantiate.py)
creates the objects, and `describe` collects what `--help` prints. The user's config folders are
searched before the package's.
"""

import copy
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_lit.config import resolvers as by_size
from maskrcnn_lit.config import schema
from maskrcnn_lit.config.instantiate import build
from maskrcnn_lit.config.overrides import (
    apply,
    as_null,
    as_path,
    check_choice,
    check_value,
    flat,
    parse,
    suggest,
)
from maskrcnn_lit.errors import UserError

__all__ = [
    "build",
    "compose",
    "conf_dir",
    "describe",
    "show",
    "to_dict",
    "to_yaml",
    "yaml_name",
]

by_size.register()

CONFIG_DIR = "MASKRCNN_LIT_CONFIG_DIR"  # the user's config folders; child processes inherit it

# Options without a default that may stay missing: the data sets them, or only validation images
# count.
_TRAIN, _VAL = (
    ["data.train.images", "data.train.annotations"],
    ["data.val.images", "data.val.annotations"],
)

NOT_ASKED = {
    "train": ["model.num_classes"],
    "bench": ["model.num_classes"],
    "lr": ["model.num_classes"],
    "evaluate": _TRAIN,
    "data stats": [*_TRAIN, *_VAL, "model.num_classes"],
    "data check": [*_TRAIN, *_VAL],
    "data show": [*_TRAIN, *_VAL],
    "data convert": [*_TRAIN, *_VAL],
    "data split": [*_TRAIN, *_VAL],
    "data subset": [*_TRAIN, *_VAL],
}


# Options that may stay missing, but are listed in the help.
NOT_HIDDEN = {command: [*_TRAIN, *_VAL] for command in NOT_ASKED if command.startswith("data ")}

COMMENTS = ("sweep.", "question.")  # keys of experiments, for every command
SCORING = (
    "evaluation.",
    "metrics.",
)  # the same, of commands that score nothing


class Option(NamedTuple):
    """An option: its name, its default, its allowed values (schema.py; "" for an option of the
    user), and its comment in the yaml.
    """

    name: str
    value: Any
    expects: str
    comment: str


class Description(NamedTuple):
    """A command's groups, name -> (choices, default choice), and its options."""

    groups: dict[str, tuple[list[str], str | None]]
    options: list[Option]


def conf_dir() -> Path:
    """The folder of the yaml files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def config_dirs() -> list[Path]:
    """The folders of yaml files in search order: the user's first, then the package's.

    Raises:
        UserError: a path in MASKRCNN_LIT_CONFIG_DIR (or `--config-dir`) is not a folder.
    """
    named = [text for text in os.environ.get(CONFIG_DIR, "").split(os.pathsep) if text]
    folders = [Path(text).expanduser().absolute() for text in named]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"--config-dir={folder} is not a folder: give one with yaml files such as "
                "model/mine.yaml"
            )
    return [*folders, conf_dir()]


class _UserFolders(SearchPathPlugin):
    """Hydra's search path, with the user's folders first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(config_dirs()[:-1]):
            search_path.prepend("user", f"file://{folder}")


Plugins.instance().register(_UserFolders)


def _stamp() -> tuple[tuple[str, int], ...]:
    """The yaml files in the user's folders and their modification times: a key for caches."""
    files = [file for folder in config_dirs()[:-1] for file in sorted(folder.rglob("*.yaml"))]
    changed = [(str(file), file.stat().st_mtime_ns) for file in files]
    return (str(conf_dir()), 0), *changed


def yaml_name(command: str) -> str:
    """The name of the yaml and the module of `command`: data_stats for "data stats"."""
    return command.replace(" ", "_")


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The full config of `command`: no value is missing, every interpolation resolves, unknown keys
    are errors.

    Raises UserError for an override that cannot be parsed, an unknown option, group or choice (with
    a suggestion), a value that the schema does not allow or of another type than the default, and a
    missing required option.
    """
    config = show(command, overrides)
    missing = [name for name, value in flat(OmegaConf.to_container(config)) if value == "???"]
    not_asked = _not_asked(command, config)
    for name in set(missing) & set(not_asked):
        missing.remove(name)
        OmegaConf.update(config, name, None)
    if missing:
        given = " ".join(f"{name}=..." for name in missing)
        raise UserError(
            f"{command} needs {', '.join(missing)}, which {'has' if len(missing) == 1 else 'have'} "
            f"no default: add {given}"
            + (_ONE_JSON if command == "train" and _is_val(missing) else "")
        )
    _expand_home(config)
    with _readable_errors():
        resolved = to_dict(config)
    schema.check(resolved, skip=not_asked)
    return config


def _expand_home(config: DictConfig) -> None:
    """Expand `~` at the beginning of paths to the user's home."""
    for name, value in list(flat(OmegaConf.to_container(config))):
        if schema.is_path(name) and isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(config, name, os.path.expanduser(value))


# Advice for a single json, as annotation tools export it.
_ONE_JSON = (
    " (images that are not trained on); to divide the images of a single json, give "
    "data.annotations=FILE data.images=DIR data.val_share=0.2 in place of data.train and data.val"
)


def _is_val(missing: Sequence[str]) -> bool:
    """Whether only options of the validation part are missing."""
    return bool(missing) and all(name.startswith("data.val.") for name in missing)


def show(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """As `compose`, for display: required options may be missing (`???`), and references stay
    unresolved.
    """
    overrides = [as_path(_without_alias(command, text)) for text in overrides]
    parsed = [parse(text) for text in overrides]
    with _loader(), _readable_errors():
        stamp = _stamp()
        groups = _defaults(stamp, command, ()).choices
        for override in parsed:
            name = override.key_or_group
            choices = [] if isinstance(override.value(), dict) else _options(stamp, name)
            if choices:
                check_choice(override, command, groups, choices)
        chosen = _chosen(stamp, overrides)
        known = _known(stamp, command, tuple(chosen))
        for override in parsed:
            if override.input_line not in chosen:
                check_value(override, command, groups, known)
        config = copy.deepcopy(_composed(stamp, command, tuple(chosen)))
        for override in parsed:
            if override.input_line not in chosen:
                apply(parse(as_null(override, known)), config)
    plain = cast(dict[str, Any], OmegaConf.to_container(config))
    schema.check(plain, _not_asked(command, config))
    return config


def values_of(config: DictConfig) -> dict[str, Any]:
    """Dotted name -> plain value of every option of `config`, which may be one of `show`: a
    reference to a missing value stays as it is, and missing values are left out.
    """
    values: dict[str, Any] = {}
    for name, raw in flat(OmegaConf.to_container(config)):
        if isinstance(raw, dict) or raw == "???":
            continue
        try:
            value = OmegaConf.select(config, name)
        except OmegaConfBaseException:
            value = raw
        if not isinstance(value, DictConfig):  # a reference to a group
            values[name] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return values


def _without_alias(command: str, override: str) -> str:
    """`from=labelme` of `data convert` is `data=labelme`."""
    alias = command == "data convert" and override.startswith("from=")
    return f"data={override.removeprefix('from=')}" if alias else override


def _not_asked(command: str, config: Any) -> list[str]:
    """The options without a default that may stay missing."""
    data = config.get("data") or {}
    one_source = any(data.get(name) is not None for name in ("reader", "annotations"))
    return [*NOT_ASKED.get(command, []), *([*_TRAIN, *_VAL] if one_source else [])]


class _Defaults(NamedTuple):
    """A command's resolved defaults list: group -> choice, and option -> its comment in the
    yaml.
    """

    choices: dict[str, str | None]
    comments: dict[str, str]


@lru_cache(maxsize=64)
def _known(stamp: tuple[Any, ...], command: str, chosen: tuple[str, ...]) -> Any:
    """As `_composed`, as plain data; the options of an experiment exist."""
    config = by_size.plain(copy.deepcopy(_composed(stamp, command, chosen)))
    _check_experiment(stamp, command, config, chosen)
    return config


@lru_cache(maxsize=64)  # the runs of a sweep choose the same groups
def _composed(stamp: tuple[Any, ...], command: str, chosen: tuple[str, ...]) -> DictConfig:
    """The config of a command with the group choices `chosen`, from the files of the current
    loader. Change a copy of it.
    """
    return hydra.compose(yaml_name(command), overrides=list(chosen))


@lru_cache(maxsize=64)
def _defaults(stamp: tuple[Any, ...], command: str, chosen: tuple[str, ...]) -> _Defaults:
    """The defaults list of a command, from the files of the current loader."""
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(yaml_name(command), list(chosen), RunMode.RUN)
    choices = {
        name: choice
        for name, choice in defaults.overrides.known_choices.items()
        if not name.startswith("hydra/")
    }
    comments: dict[str, str] = {}
    for source in defaults.defaults:
        comments |= _comments(find_yaml(str(source.config_path)), source.package or "")
    return _Defaults(choices, comments)


def describe(command: str, overrides: Sequence[str] = (), *, deep: bool = False) -> Description:
    """The groups of `command`, and its options with the values that `overrides` give. Options of
    one or two names (`optimizer.lr`) and required ones are included, with `deep` all. Without a
    choice of data, the options of data=coco_json are included.
    """
    overrides = [as_path(_without_alias(command, text)) for text in overrides]
    config = by_size.plain(show(command, overrides))
    with _loader():
        stamp = _stamp()
        choices, comments = _defaults(stamp, command, tuple(_chosen(stamp, overrides)))
        groups = {
            name: (sorted(_options(stamp, name)), choice)
            for name, choice in sorted(choices.items())
        }
    typed = NOT_HIDDEN.get(command, []) if deep else []
    hidden = [name for name in _not_asked(command, config) if name not in typed]
    options = [
        Option(name, value, _expects(name, config), comments.get(name, ""))
        for name, value in flat(config)
        if (deep or name.count(".") < 2 or value == "???")
        and not any(
            part.startswith("_") for part in name.split(".")
        )  # _target_ and the like are not options
        and not isinstance(value, dict)
        and name not in hidden
        and not name.startswith("sweep.demo.")
        and not str(value).startswith("${")  # follows another option
    ]
    if groups.get("data", ((), "chosen"))[1] is None:  # evaluate: data is optional
        more = describe(command, [*overrides, "data=coco_json"], deep=deep).options
        options += [option for option in more if option.name.startswith("data.")]
    return Description(groups, options)


def _expects(name: str, config: Any) -> str:
    rule = schema.applies(name, config)
    return schema.expects(rule) if rule else ""


def to_dict(config: DictConfig) -> dict[str, Any]:
    """`config` as plain data with references resolved, as checkpoints store it."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def to_yaml(config: DictConfig) -> str:
    """`config` as yaml, with references unresolved."""
    return OmegaConf.to_yaml(config)


@contextmanager
def _loader() -> Iterator[None]:
    """Initialize Hydra on the package's yaml files."""
    with hydra.initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        yield


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf, in a yaml file for example, into UserErrors."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"the config cannot be composed: {_line(error)}") from error


def _line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).partition("Config search path")[0].splitlines())
    return " ".join(line for line in lines if line and not line.startswith("object_type"))


@lru_cache(maxsize=1024)  # Hydra copies all files that it has read to list them
def _options(stamp: tuple[Any, ...], group: str) -> tuple[str, ...]:
    """The choices of a group, with those of its subfolders: paper/table_3 of experiment. From the
    files of the current loader.
    """
    loader = GlobalHydra.instance().config_loader()
    inside = [
        f"{folder}/{choice}"
        for folder in loader.list_groups(group)
        for choice in loader.get_group_options(f"{group}/{folder}")
    ]
    return (*loader.get_group_options(group), *inside)


def _chosen(stamp: tuple[Any, ...], overrides: Sequence[str]) -> list[str]:
    """The `overrides` that choose from a group."""
    return [
        text
        for text in overrides
        if _options(stamp, parse(text).key_or_group) and not isinstance(parse(text).value(), dict)
    ]


def _check_experiment(
    stamp: tuple[Any, ...], command: str, config: Any, chosen: tuple[str, ...]
) -> None:
    """Raise UserError if an experiment sets an option that does not exist: Hydra would accept it
    and nothing would read it. New objects (a callback, say) are allowed, `build` checks their
    arguments; names under `sweep` are checked when the sweep starts.
    """
    given = any(parse(text).key_or_group == "experiment" for text in chosen)
    if not given and _defaults(stamp, command, ()).choices.get("experiment") is None:
        return
    choices = _defaults(stamp, command, chosen).choices
    if choices.get("experiment") is None:
        return
    others = tuple(
        f"{group}={choice}" for group, choice in choices.items() if choice and group != "experiment"
    )
    known = dict(flat(OmegaConf.to_container(_composed(stamp, command, others))))
    named = dict(flat(config))
    objects = tuple(
        f"{name}."
        for name, value in named.items()
        if isinstance(value, dict) and "_target_" in value
    )
    unread = (*COMMENTS, *((*SCORING, "auto_batch.") if command in ("bench", "lr") else ()))
    for name in named:
        if name not in known and not f"{name}.".startswith((*objects, *unread)):
            text = f"experiment={choices['experiment']} sets {name}, which {command} does not have"
            raise UserError(f"{text}{suggest(name, known)}")


def find_yaml(name: str) -> Path | None:
    """The file of "group/choice", in the first of `config_dirs` that has it."""
    files = [folder / f"{name}.yaml" for folder in config_dirs()]
    return next((file for file in files if file.is_file()), None)


def _comments(file: Path | None, package: str) -> dict[str, str]:
    """Option -> its comment, in a yaml file."""
    if file is None:
        return {}
    comments: dict[str, str] = {}
    above: list[tuple[int, str]] = [(-1, package)]  # indentation and name of the enclosing keys
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = re.match(r"( *)([\w.]+):(?:\s.*?)?(?:\s# (.+))?$", line)
        if entry is None:
            continue
        indent, key, comment = len(entry[1]), entry[2], entry[3]
        while above[-1][0] >= indent:
            above.pop()
        name = f"{above[-1][1]}.{key}" if above[-1][1] else key
        above.append((indent, name))
        if comment:
            comments[name] = comment.strip()
    return comments
