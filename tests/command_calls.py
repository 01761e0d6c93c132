"""What a command line gives to the function behind it, for the tests of options."""

import inspect
from importlib import import_module

from diffusers_ucgm.cli import main, parser_for


def parsed(*words):
    return parser_for(words).parse_args(words)


def arguments_of(monkeypatch, path, *words):
    """The arguments by name that a command gives to a function, in whose place the command ends.

    Args:
        monkeypatch: The fixture.
        path: The function as `module:name`, in the module that the command takes it from.
        words: The command line.
    """
    module, name = path.split(":")
    module = import_module(f"diffusers_ucgm.{module}")
    signature, calls = inspect.signature(getattr(module, name)), []

    def end(*args, **keywords):
        calls.append(signature.bind(*args, **keywords).arguments)
        raise ValueError("the command ends here")

    monkeypatch.setattr(module, name, end)
    assert main([*map(str, words)]) == 2
    (found,) = calls
    # The keyword arguments of a conversion that go to the network.
    others = found.pop("settings", {})
    return {**found, **others}


def default_of(function, name):
    return inspect.signature(function).parameters[name].default
