"""The command `ucgm completion`: a script with which a shell completes commands, options and the names of files."""

import argparse
import sys

from .console import PATHS, RESULTS


__all__ = ["COMMANDS", "OPTIONS", "SHELLS", "completion_script"]

SHELLS = ("bash", "zsh", "fish", "tcsh")
# Where each shell looks for such a script, or what reads it at the start of a session.
EXAMPLES = """\
bash:  ucgm completion bash > ~/.local/share/bash-completion/completions/ucgm
zsh:   ucgm completion zsh > ~/.zfunc/_ucgm     with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
fish:  ucgm completion fish > ~/.config/fish/completions/ucgm.fish
tcsh:  ucgm completion tcsh > ~/.ucgm.tcsh      with `source ~/.ucgm.tcsh` in ~/.tcshrc
"""


def add_completion_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ucgm completion`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that completes the words of a parser.

    Args:
        parser: The parser with the options of all its commands.
        shell: One of `SHELLS`.

    Raises:
        ImportError: If shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "Shell completion needs shtab. Install it by `pip install 'diffusers-ucgm[completion]'`."
        ) from error
    for action in _actions(parser):
        if action.dest in (*PATHS, *RESULTS):
            vars(action)["complete"] = shtab.FILE
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a parser and of its commands."""
    found: list[argparse.Action] = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            found += [each for command in action.choices.values() for each in _actions(command)]
    return found


def completion(args: argparse.Namespace) -> int:
    """Print the script for a shell."""
    sys.stdout.write(f"{completion_script(args.parser, args.shell)}\n")
    return 0


OPTIONS = {"completion": add_completion_options}
COMMANDS = {"completion": completion}
