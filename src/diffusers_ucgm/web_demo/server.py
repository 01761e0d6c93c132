"""The server of the page."""

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from diffusers_ucgm.constraints import TEXT, Setting, check, whole

from .defaults import HOST, PORT
from .models import ModelHolder, ServedModel, load_model


__all__ = ["open_page"]

INSTALL = "The web demo needs gradio. Install it by `pip install 'diffusers-ucgm[demo]'`."
NO_ADDRESS = f"`host` must be an address of this machine, such as {HOST}"
SERVER_ARGUMENTS: dict[str, Setting] = {"host": TEXT, "port": whole(65_535)}
# Gradio's switches of what leaves this machine: its statistics and update check, and a public address.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_SHARE": "False"}


@contextmanager
def open_page(
    model: str = "emoji",
    *,
    lora: str | None = None,
    lora_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    call: Mapping[str, object] | None = None,
    host: str = HOST,
    port: int = PORT,
) -> Iterator[str]:
    """Serve the page while entered.

    Args:
        model: The first model: a bundled name, a folder, or `owner/name` on the Hub.
        lora: A LoRA for the first model, as one more way of sampling.
        lora_scale: The strength of that LoRA.
        dtype: The dtype of the loaded weights.
        device: Where models sample; None is an accelerator where there is one, or else the CPU.
        call: Further arguments of the first model's call, such as `height`.
        host: The address to listen on. Where others can reach it, visitors load bundled models only, and no folders.
        port: The port, from 1 to 65535.

    Yields:
        The page's address for a browser on this machine.

    Raises:
        ImportError: If gradio is not installed.
        OSError: If the address is not of this machine, or the port is in use.
        ValueError: If the port is out of its range, or the first model cannot be loaded.
    """
    check(SERVER_ARGUMENTS, {"host": host, "port": port})
    # Before gradio is imported, which reads them.
    os.environ.update(QUIET)
    try:
        from .page import CSS, THEME, demo_page
    except ImportError as error:
        if error.name not in ("gradio", "matplotlib"):
            raise
        raise ImportError(INSTALL) from error
    _check_free(host, port)

    def load(name: str) -> ServedModel:
        given = {"lora": lora, "lora_scale": lora_scale, "call": call} if name == model else {}
        return load_model(name, dtype=dtype, device=device, **given)

    holder = ModelHolder(model, load, takes_folders=_is_loopback(host))
    page = demo_page(holder)
    try:
        _, url, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # as addresses have it
            server_port=port,
            share=False,
            ssr_mode=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=THEME,
            css=CSS,
            footer_links=["gradio"],
        )
        yield url
    finally:
        holder.close()
        page.close(verbose=False)


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    """Check that the address can be listened on, before a model is loaded."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(f"{NO_ADDRESS}, got {host!r}: {error.strerror}.") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        # As servers do: a port whose connections are closing is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise OSError(
                    f"`port` must be free at {host}, got {port}: {error.strerror}. Give another one by `--port`."
                ) from error
            raise OSError(f"{NO_ADDRESS}, got {host!r}: {error.strerror}.") from error
