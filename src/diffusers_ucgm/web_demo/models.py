"""The pipeline behind the page: what it takes, the ways of sampling it, and whose turn it is."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers.utils import logging

from diffusers_ucgm.checks import check_device
from diffusers_ucgm.contracts import (
    Pipeline,
    Steppable,
    call_parameters,
    network_of,
    networks_of,
    takes_classes,
    target_time_name,
)
from diffusers_ucgm.generation.conditions import check_call_arguments, conditions_for, no_guidance
from diffusers_ucgm.generation.demo import DEMO_PROMPTS, GUIDANCE, MODEL
from diffusers_ucgm.labels import class_names
from diffusers_ucgm.loading import load_pipeline, load_pipeline_lora
from diffusers_ucgm.names import BUNDLED, BUNDLED_LORAS, local_or_hub, local_path
from diffusers_ucgm.solver_study.stock_solvers import stock_solvers, ucgm_solvers


__all__ = ["OWN", "ModelHolder", "ServedModel", "Way", "load_model"]

# The name of the scheduler that a pipeline was saved with.
OWN = "pipeline's own"
# The network calls with which the page opens.
CALLS, FEW_CALLS = 8, 4


@dataclass(frozen=True)
class Way:
    """A way of sampling that the page offers under a solver's name.

    Attributes:
        pipe: The pipeline, with or without the LoRA.
        scheduler: The scheduler that takes the place of the pipeline's.
        call: Arguments of the pipeline's call that go before those of the page: a few-step model is not guided.
        has_lora: Whether the pipeline has the LoRA.
    """

    pipe: Pipeline
    scheduler: Steppable
    call: Mapping[str, float] = field(default_factory=dict)
    has_lora: bool = False


@dataclass(frozen=True)
class ServedModel:
    """A pipeline and what the page needs to know of it.

    Attributes:
        name: The name that it was loaded by.
        pipe: The pipeline.
        ways: The ways of sampling it, by the names that `ucgm compare` gives the solvers.
        call: Further arguments of its call, such as `height`.
    """

    name: str
    pipe: Pipeline
    ways: Mapping[str, Way]
    call: Mapping[str, object]

    @property
    def classes(self) -> list[str]:
        """The names of its classes, or their ids where they have no names; none for a pipeline of prompts."""
        if not takes_classes(self.pipe):
            return []
        names = {int(key): name for key, name in class_names(self.pipe).items()}
        return [names.get(cast(int, index), str(index)) for index in conditions_for(self.pipe, None)]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts that it knows."""
        return () if self.classes else DEMO_PROMPTS if self.name == MODEL else ("a photo of a cat",)

    @property
    def is_few_step(self) -> bool:
        """Whether the pipeline was saved with the sampler of a few-step model."""
        return _is_few_step(self.pipe.scheduler)

    @property
    def takes_guidance(self) -> bool:
        """Whether its call takes a guidance scale."""
        return "guidance_scale" in call_parameters(self.pipe)

    @property
    def guidance(self) -> float | None:
        """The guidance scale with which the page opens; None is the pipeline's own."""
        if self.name == MODEL:
            return GUIDANCE
        published = (self.pipe.config.get("call_defaults") or {}).get("guidance_scale")
        own = call_parameters(self.pipe)["guidance_scale"].default if self.takes_guidance else None
        default = own if published is None else published
        return no_guidance(self.pipe).get("guidance_scale", default) if self.is_few_step else default

    @property
    def num_calls(self) -> int:
        """The number of network calls with which the page opens."""
        return FEW_CALLS if self.is_few_step else CALLS

    @property
    def solvers(self) -> tuple[str, str]:
        """The two solvers with which the page opens: a stock one where there is one, and one of this package."""
        ours = [name for name in self.ways if name.startswith("UCGM")]
        others = [name for name, way in self.ways.items() if name not in (OWN, *ours) and not way.has_lora]
        return (*others, *ours)[0], ours[0] if others and not self.is_few_step else OWN

    def way(self, solver: object) -> Way:
        """The way of sampling under a solver's name.

        Raises:
            ValueError: If there is none.
        """
        found = self.ways.get(solver) if isinstance(solver, str) else None
        if found is None:
            raise ValueError(f"`solver` must be one of {list(self.ways)}, got {solver!r}.")
        return found

    def condition(self, text: object) -> int | str:
        """A class or prompt from the words of a user.

        Raises:
            ValueError: If it is no text or an empty one, or the model has no class of that name.
        """
        what = "class" if self.classes else "prompt"
        # A list in which nothing is chosen sends None.
        if not isinstance(text, str | None):
            raise ValueError(f"`{what}` must be a text, got {text!r:.80}.")
        if text is None or not text.strip():
            raise ValueError(f"`{what}` must not be empty, got {text!r}.")
        text = text.strip()
        if not self.classes:
            return text
        return conditions_for(self.pipe, None, [int(text) if text.isdecimal() else text])[0]

    def arguments(self, way: Way, guidance: float | None) -> dict[str, object]:
        """The arguments of a call of the pipeline beside condition, calls and seed."""
        given = {"guidance_scale": guidance} if guidance is not None and self.takes_guidance else {}
        return {**self.call, **given, **way.call}


def _is_few_step(scheduler: Steppable) -> bool:
    return scheduler.config.get("stochasticity") == 1.0


def load_model(
    name: str,
    *,
    lora: str | None = None,
    lora_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    call: Mapping[str, object] | None = None,
) -> ServedModel:
    """Load a pipeline with its ways of sampling.

    Args:
        name: A bundled name, a folder, or `owner/name` on the Hub.
        lora: A LoRA that is one more way of sampling, with a second copy of the pipeline; None takes the bundled LoRA
            of a bundled pipeline.
        lora_scale: The strength of that LoRA.
        dtype: The dtype of the loaded weights.
        device: Where it samples; None is an accelerator where there is one, or else the CPU.
        call: Further arguments of the pipeline's call, such as `height`.

    Raises:
        OSError: If there is no pipeline under that name, or its weights are not safetensors.
        ValueError: If diffusers cannot build it, it takes neither prompts nor classes, or its scheduler is of an
            unknown kind.
    """
    device = check_device(device, dtype)
    if lora is not None:
        local_or_hub("lora", lora, BUNDLED_LORAS)  # before the pipeline is loaded, which may take minutes
    pipe = _load_pipe(name, dtype).to(device)
    takes_classes(pipe)
    check_call_arguments(pipe, call or {})
    config = pipe.scheduler.config
    own = Way(pipe, pipe.scheduler, no_guidance(pipe) if _is_few_step(pipe.scheduler) else {})
    # The schedulers of diffusers do not tell a network of two times where a call leads.
    stock = {} if target_time_name(network_of(pipe)) else stock_solvers(config)
    solvers = {**ucgm_solvers(config), **stock}
    ways = {OWN: own, **{solver: Way(pipe, scheduler) for solver, scheduler in solvers.items()}}
    if lora is None:
        lora = next((each for each in BUNDLED_LORAS if each.startswith(f"{name}-")), None)
    if lora is not None:
        ways[f"{lora} (LoRA)"] = _with_lora(_load_pipe(name, dtype), lora, lora_scale, device)
    return ServedModel(name, pipe, ways, call or {})


def _load_pipe(name: str, dtype: torch.dtype) -> Any:
    logging.disable_progress_bar()
    try:
        return load_pipeline(name, dtype, argument="model")
    finally:
        logging.enable_progress_bar()


def _with_lora(pipe: Any, lora: str, scale: float, device: torch.device) -> Way:
    """The way of sampling with a LoRA, which brings its sampler along."""
    load_pipeline_lora(pipe, lora, scale, argument="lora")
    pipe.to(device)
    return Way(pipe, pipe.scheduler, no_guidance(pipe) if _is_few_step(pipe.scheduler) else {}, has_lora=True)


class ModelHolder:
    """The one model in memory, which one user at a time samples; another user's model takes its place.

    Each user's page says which model it is for, so that no page samples a model that another user has chosen.
    """

    def __init__(self, start: str, load: Callable[[str], ServedModel], *, takes_folders: bool = False) -> None:
        """Load the first model.

        Args:
            start: Its name, which pages may always ask for.
            load: Loads a model by its name.
            takes_folders: Whether pages may ask for any folder of this machine, and not only for bundled models.
        """
        self.start = start
        self.takes_folders = takes_folders
        self._load = load
        self._lock = threading.Lock()
        self._model = load(start)
        self._is_closed = False

    @property
    def names(self) -> list[str]:
        """The names that pages offer."""
        return [self.start, *(name for name in BUNDLED if name != self.start)]

    @contextmanager
    def use(self, name: object, on_call: Callable[[int], None] | None = None) -> Iterator[ServedModel]:
        """A model that nobody else samples while entered.

        Args:
            name: One of `names`, or the folder of a pipeline on this machine where these are taken.
            on_call: Called after each network call with the number of calls since the model was entered.

        Raises:
            OSError: If there is no such folder.
            ValueError: If it holds no pipeline that can be sampled. The model before it stays in memory.
            InterruptedError: If the page closes meanwhile.
        """
        name = name.strip() if isinstance(name, str) else name
        with self._lock:
            if name != self._model.name:
                self._model = self._load(self._checked(name))
            with self._observed(self._model, on_call):
                yield self._model

    def _checked(self, name: object) -> str:
        """The name, which is no repository of the Hub: a page downloads nothing."""
        if name in self.names:
            return str(name)
        if not self.takes_folders or not isinstance(name, str):
            raise ValueError(f"`model` must be one of {self.names}, got {name!r}.")
        return str(local_path("model", name, "a bundled pipeline or the folder of a pipeline", self.names))

    @contextmanager
    def _observed(self, model: ServedModel, on_call: Callable[[int], None] | None) -> Iterator[None]:
        """Count the network calls, and end at the next one where the page closes."""
        number = 0

        def count(*_: object) -> None:
            nonlocal number
            if self._is_closed:
                raise InterruptedError("The page has closed.")
            number += 1
            if on_call is not None:
                on_call(number)

        pipes = {id(way.pipe): way.pipe for way in model.ways.values()}.values()
        networks = [network for pipe in pipes for network in networks_of(pipe).values()]
        hooks = [network.register_forward_hook(count) for network in networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def close(self) -> None:
        """End the sampling at its next network call, and wait for it."""
        self._is_closed = True
        with self._lock:
            pass
