"""`maskrcnn-lit completion bash|zsh|fish`: a script for Tab completion of commands, groups,
choices, options and their values.

At each Tab the script calls `maskrcnn-lit completion words ...`, which composes the config from the
words typed so far, so the options are those of the selected groups. It does not import torch.
"""

from collections.abc import Iterable, Sequence

from maskrcnn_lit.config.compose import Description, Option, describe
from maskrcnn_lit.config.schema import applies
from maskrcnn_lit.errors import UserError

# In bash "=" ends a word: `seed=1` arrives as three words, and a candidate is the part after "=".
BASH = """\
# eval "$(maskrcnn-lit completion bash)", in ~/.bashrc for example
_maskrcnn_lit() {
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion words "${words[@]}" 2>/dev/null))
    [[ ${COMPREPLY[*]} == *[=.] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _maskrcnn_lit maskrcnn-lit
"""
ZSH = """\
# eval "$(maskrcnn-lit completion zsh)", in ~/.zshrc for example, after compinit
_maskrcnn_lit() {
    local -a candidates
    candidates=("${(@f)$(${words[1]} completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    [[ -n $candidates ]] && compadd -Q -S '' -- $candidates || _files -P "${PREFIX%%=*}="
}
compdef _maskrcnn_lit maskrcnn-lit
"""
FISH = """\
# maskrcnn-lit completion fish | source, in ~/.config/fish/config.fish for example
function __maskrcnn_lit
    set -l words (commandline -opc) (commandline -ct)
    $words[1] completion words $words[2..-1] 2>/dev/null
end
complete -c maskrcnn-lit -a '(__maskrcnn_lit)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
FLAGS = ("--help", "--cfg", "--config-dir")


def complete(words: Sequence[str], commands: Sequence[str]) -> int:
    """`completion SHELL` prints a script; `completion words WORD ...` prints the completions of the
    last word.
    """
    if words and words[0] == "words":
        print(*candidates(list(words[1:]), commands), sep="\n")
        return 0
    shell = words[0] if len(words) == 1 else ""
    if shell not in SCRIPTS:
        raise UserError(
            f"completion needs the name of a shell, {', '.join(SCRIPTS)}: "
            'eval "$(maskrcnn-lit completion bash)"'
        )
    print(SCRIPTS[shell], end="")
    return 0


def candidates(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """The completions of the last of `words`, the command line without its first word.

    A shell that ends a word at "=" passes NAME, "=" and VALUE as three words: then the candidates
    are values, else NAME=VALUE. A path has no candidates; the shell completes it.
    """
    apart = len(words) > 1 and "=" in (words[-1], words[-2])
    joined = _joined(words)
    if joined[:1] == ["completion"]:
        return [shell for shell in SCRIPTS if len(joined) == 2 and shell.startswith(joined[1])]
    if joined[:1] == ["help"] and len(joined) > 1:
        joined = joined[1:]
    current = joined.pop() if joined else ""
    length = next((n for n in (1, 2) if n <= len(joined) and " ".join(joined[:n]) in commands), 0)
    if not length:
        typed = " ".join([*joined, current])
        known = [*commands, *(() if joined else ("help", "completion", "--help", "--version"))]
        completions = [
            command[len(typed) - len(current) :] for command in known if command.startswith(typed)
        ]
        return list(dict.fromkeys(text.split(" ")[0] for text in completions))
    command, typed_words = " ".join(joined[:length]), joined[length:]
    if current.startswith("-"):
        flags = [*FLAGS, "--multirun"] if command == "train" else FLAGS
        return [flag for flag in flags if flag.startswith(current)]
    description = _described(command, typed_words)
    name, equals, value = current.partition("=")
    if not equals:
        return _names(description, name)
    values = [text for text in _values(description, name) if text.startswith(value)]
    return values if apart else [f"{name}={text}" for text in values]


def _joined(words: Iterable[str]) -> list[str]:
    """The words, with NAME, "=", VALUE joined into one word."""
    joined: list[str] = []
    glue = False
    for word in words:
        if joined and (word == "=" or glue):
            joined[-1] += word
        else:
            joined.append(word)
        glue = word == "="
    return joined


def _described(command: str, words: Sequence[str]) -> Description:
    """The description with the overrides typed so far, or without them if they are invalid."""
    try:
        return describe(command, [word for word in words if "=" in word], deep=True)
    except UserError:
        return describe(command, deep=True)


def _names(description: Description, name: str) -> list[str]:
    """Groups and options up to the next dot: first `data.`, then `data.batch_size=`."""
    stem = name[: name.rfind(".") + 1]
    candidates = [f"{group}=" for group in description.groups]
    for option in description.options:
        if option.name.startswith(stem):
            head, dot, _ = option.name.removeprefix(stem).partition(".")
            candidates.append(f"{stem}{head}{'.' if dot else '='}")
    return sorted({text for text in candidates if text.startswith(name)})


def _values(description: Description, name: str) -> list[str]:
    if name in description.groups:
        return description.groups[name][0]
    option = next((option for option in description.options if option.name == name), None)
    return _option_values(option) if option else []


def _option_values(option: Option) -> list[str]:
    rule = applies(option.name, {})
    if rule is None or rule.kind == "path":
        return []
    values = list(rule.choices) if rule.kind == "choice" else []
    values += ["true", "false"] if rule.kind == "flag" else []
    values += [word for word in rule.words if word]
    return values + (["null"] if rule.null and values else [])
