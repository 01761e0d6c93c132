"""Use an installed wheel as people do, without the sources and without a network.

    python -m pip install dist/diffusers_ucgm-*.whl
    cd /tmp && python -I /path/to/tools/check_wheel.py
    cd /tmp && python -I /path/to/tools/check_wheel.py --light   # after `pip install --no-deps`

`-I` keeps the current folder and PYTHONPATH out of the search for modules. Each check prints a line; the first that
fails ends the run with a traceback.
"""

import contextlib
import importlib
import io
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
from importlib.metadata import metadata, version
from pathlib import Path
from typing import NoReturn


os.environ["HF_HUB_OFFLINE"] = "1"

# In a process that cannot import this package, diffusers loads a bundled stock pipeline and draws with it.
WITHOUT_US = """
import sys
sys.modules["diffusers_ucgm"] = None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], use_safetensors=True)
side = pipe.vae.config.sample_size
image = pipe("a red apple", height=side, width=side, num_inference_steps=2, guidance_scale=0.0).images[0]
assert len(set(image.getdata())) > 10, image.getextrema()
print(type(pipe).__name__, image.size)
"""
LIGHT = ("torch", "diffusers", "transformers", "numpy")


def refuse_connections() -> None:
    """Have each connection to another machine fail."""

    def refuse(*_: object) -> NoReturn:
        raise OSError("The wheel must not need a network.")

    socket.create_connection = refuse


def check_import() -> str:
    """The package is the installed one, has its models, and imports nothing heavy."""
    import diffusers_ucgm
    from diffusers_ucgm.names import BUNDLED

    place = Path(diffusers_ucgm.__file__).parent
    assert "site-packages" in place.parts, place
    assert (place / "py.typed").is_file()
    assert all((folder / "model_index.json").is_file() for folder in BUNDLED.values()), BUNDLED
    assert not set(LIGHT) & set(sys.modules), sorted(set(LIGHT) & set(sys.modules))
    assert diffusers_ucgm.__version__ == version("diffusers-ucgm")
    return f"{diffusers_ucgm.__version__} in {place}"


def check_metadata() -> str:
    """The page of the package index has a description, a licence and addresses."""
    found = metadata("diffusers-ucgm")
    assert found["License-Expression"] == "Apache-2.0"
    urls = found.get_all("Project-URL") or []
    assert any(url.startswith("Repository, ") for url in urls), urls
    return ", ".join(urls)


def check_public_names() -> str:
    """Each public name can be imported."""
    import diffusers_ucgm

    names = [name for name in diffusers_ucgm.__all__ if getattr(diffusers_ucgm, name) is not None]
    assert names == list(diffusers_ucgm.__all__)
    return f"{len(names)} names"


def check_sources() -> str:
    """This Python reads every module, and the help of every command needs no dependency."""
    from diffusers_ucgm import cli

    place = Path(cli.__file__).parent
    files = sorted(place.rglob("*.py"))
    for file in files:
        compile(file.read_text(encoding="utf-8"), str(file), "exec")
    command = Path(sys.executable).with_name("ucgm")
    shown = subprocess.run([command], capture_output=True, text=True, check=True).stdout
    assert "ucgm demo" in shown
    for name in cli.COMMANDS:
        subprocess.run([command, name, "--help"], capture_output=True, check=True)
    return f"{len(files)} modules, {len(cli.COMMANDS)} commands"


def check_modules() -> str:
    """Every module can be imported: a name that this Python lacks shows here, and not when it is read."""
    import diffusers_ucgm

    names = sorted(each.name for each in pkgutil.walk_packages(diffusers_ucgm.__path__, "diffusers_ucgm."))
    missing: set[str] = set()
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("diffusers_ucgm"):
                raise
            missing.add(error.name)  # of an extra that is not installed
    return f"{len(names)} modules, without {sorted(missing)}"


def check_command() -> str:
    """The command draws with a bundled model."""
    from diffusers_ucgm.cli import main

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        output = Path(folder, "grid.png")
        words = ["sample", "--model", "fashion-mnist-2-step", "--labels", "Bag", "--num-images", "1", "--steps", "2"]
        assert main([*words, "--device", "cpu", "--output", str(output)]) == 0
        assert output.stat().st_size > 0
    return printed.getvalue().splitlines()[0]


def check_swap() -> str:
    """The README's first lines: a bundled pipeline, and the scheduler in the place of its own."""
    from diffusers_ucgm import UCGMPipeline, UCGMScheduler

    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    found = pipe("Sneaker", num_inference_steps=3)
    return f"{found.images[0].size}, {found.num_network_calls} network calls"


def check_without_us() -> str:
    """A bundled stock pipeline is one: diffusers loads it where this package cannot be imported."""
    from diffusers_ucgm.names import BUNDLED

    command = [sys.executable, "-I", "-c", WITHOUT_US, str(BUNDLED["emoji"])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


WITHOUT_DEPENDENCIES = (check_import, check_metadata, check_sources)
CHECKS = (*WITHOUT_DEPENDENCIES, check_modules, check_public_names, check_command, check_swap, check_without_us)
SHOWN = ("torch", "diffusers", "transformers", "huggingface-hub", "numpy")


def main() -> int:
    """Run the checks in turn."""
    refuse_connections()
    is_light = "--light" in sys.argv[1:]
    versions = () if is_light else [f"{name} {version(name)}" for name in SHOWN]
    print(f"Python {sys.version.split()[0]}", *versions, sep=", ")
    for check in WITHOUT_DEPENDENCIES if is_light else CHECKS:
        print(f"{check.__name__}: {check()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
