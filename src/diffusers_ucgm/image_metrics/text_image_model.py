"""Models of images and texts of `transformers`, such as CLIP and SigLIP, which give both features in one space."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusers_ucgm.names import local_or_hub

from .features import FeatureNetwork, TransformersFeatures, pooled_features


__all__ = ["TextImageModel"]

WANTED = "a model of images and texts (CLIP, SigLIP, ...) with its tokenizer and image processor"
# A tokenizer without a limit has a number above this one.
LONGEST = 1_000_000


class TextImageModel:
    """The features of images and of texts by one model of `transformers`.

    Attributes:
        name: The folder, or the repository of the Hub.
        images: The network of the image features.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", argument: str = "text_image_model") -> None:
        """Load the model, its tokenizer and its image processor, which needs no torchvision.

        Args:
            name: A folder, or a repository of the Hub.
            device: The device of the model.
            argument: The name of the model in errors.

        Raises:
            FileNotFoundError: If it is a mistyped name or path.
            ValueError: If a part is missing or cannot be used.
            OSError: If the Hub has no such model.
        """
        self.name, self.argument, self.device = name, argument, device
        found = local_or_hub(argument, name)
        try:
            network = TransformersFeatures(found, device, argument)
        except OSError as error:
            raise OSError(f"`{argument}` must be {WANTED}, got {name!r}: {_reason(error)}") from error
        self.images: FeatureNetwork = network
        self._model: Any = network.model
        missing = [each for each in ("get_image_features", "get_text_features") if not hasattr(self._model, each)]
        if missing:
            raise ValueError(
                f"`{argument}` must be {WANTED}, got {type(self._model).__name__} in {name!r}, which has no {missing}."
            )
        self._tokenizer: Any = self._load_tokenizer()
        self._check_parts()

    def text_features(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """The features of texts. Texts of the same tokens have exactly the same features.

        Args:
            texts: Any texts. What is longer than the model can read is cut off.
            batch_size: Texts in a call of the model.

        Returns:
            float32 on the CPU, shape `(N, D)`.

        Raises:
            ValueError: If the tokenizer is that of another model.
        """
        rows = self.tokens(texts)
        distinct = dict(zip(rows, texts, strict=True))
        batches = [list(distinct.values())[i : i + batch_size] for i in range(0, len(distinct), batch_size)]
        features = torch.cat([self._encode(batch) for batch in batches])
        numbers = {row: i for i, row in enumerate(distinct)}
        return features[[numbers[row] for row in rows]]

    def tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The numbers of each text's tokens.

        Raises:
            ValueError: If the model has no token of a number, since the tokenizer is that of another model.
        """
        rows = [tuple(row) for row in self._tokenizer(list(texts), **self._cut())["input_ids"]]
        known = getattr(self._text_config(), "vocab_size", None)
        largest = max(max(row, default=0) for row in rows)
        if known is not None and largest >= known:
            raise ValueError(
                f"`{self.argument}` must hold the tokenizer of its model, which has {known} tokens, got one with a "
                f"token {largest} in {self.name!r}."
            )
        return rows

    @torch.no_grad()
    def _encode(self, texts: Sequence[str]) -> Tensor:
        # SigLIP was trained on texts that are filled up, and has no mask for it.
        padding = "max_length" if "siglip" in self._model.config.model_type else True
        found = self._tokenizer(list(texts), padding=padding, return_tensors="pt", **self._cut())
        taken = inspect.signature(self._model.get_text_features).parameters
        tokens = {key: value.to(self.device) for key, value in found.items() if key in taken}
        return pooled_features(self._model.get_text_features(**tokens))

    def _cut(self) -> dict[str, Any]:
        """The arguments with which the tokenizer cuts texts to what the model can read."""
        places = getattr(self._text_config(), "max_position_embeddings", None)
        longest = min(self._tokenizer.model_max_length, places or LONGEST)
        return {"truncation": True, "max_length": longest} if longest < LONGEST else {}

    def _text_config(self) -> Any:
        return getattr(self._model.config, "text_config", self._model.config)

    def _load_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(local_or_hub(self.argument, self.name))
        # A damaged or missing file fails wherever the tokenizer is built.
        except Exception as error:
            raise self._refusal(f"whose tokenizer cannot be loaded: {_reason(error)}") from error
        # Without files, transformers makes a tokenizer that knows no word.
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            raise self._refusal("which has no tokenizer")
        return tokenizer

    @torch.no_grad()
    def _check_parts(self) -> None:
        """Give the model a text and an image, since its parts may not belong together."""
        try:
            shapes = {
                "texts": self.text_features(["a text"]).shape[1],
                "images": self.images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).features.shape[1],
            }
        except Exception as error:
            raise self._refusal(f"which cannot be called: {_reason(error)}") from error
        if shapes["texts"] != shapes["images"]:
            raise self._refusal(f"whose features are not in one space: {shapes}")

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(f"`{self.argument}` must be {WANTED}, got {self.name!r}, {reason}.")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
