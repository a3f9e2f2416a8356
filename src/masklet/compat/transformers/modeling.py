"""The image models: transformers' names, signatures and outputs over the plain network of ``masklet.model``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from masklet.checkpoints.transformers import config_to_json
from masklet.compat.transformers.configuration import Sam2Config, network_config
from masklet.compat.transformers.outputs import Sam2ImageSegmentationOutput, Sam2VisionEncoderOutput
from masklet.compat.transformers.personalised import decode_personalised
from masklet.compat.transformers.pretrained import Sam2PreTrainedModel, shared_as
from masklet.compat.transformers.prompted_parts import Sam2MaskDecoder, Sam2PromptEncoder
from masklet.compat.transformers.prompts import embed_prompts, read_prompts
from masklet.compat.transformers.recording import recording
from masklet.compat.transformers.vision import Sam2VisionModel
from masklet.config import STRIDES
from masklet.config import Sam2Config as NetworkConfig
from masklet.engine import Engine, make_engine
from masklet.errors import ImageError
from masklet.model import sam2
from masklet.model.mask_decoder import DecodedMasks, MaskDecoder
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PromptEncoder, Prompts

IGNORED_INPUTS = {"original_sizes", "reshaped_input_sizes", "labels"}
"""Inputs that processors return for later steps, so that ``model(**inputs)`` passes them too."""

Whole = TypeVar("Whole", bound="Sam2Model")


class Sam2Model(Sam2PreTrainedModel):
    """SAM 2 for images: image encoder, prompt encoder and mask decoder.

    Args:
        config: ``Sam2Config``, or ``masklet.config.Sam2Config``; SAM 2.1 tiny if None.
        pad_attends: Whether padding of ragged prompts takes part, as in transformers. By default nothing attends to it,
            and an object scores the same alone and in any batch. The configuration may say it too, as ``pad_attends``.
        network: A plain network whose weights it takes; a new one if None.

    Raises:
        ConfigError: The configuration asks for a network that this package cannot build.
    """

    config_class = Sam2Config
    has_memory: ClassVar[bool] = False
    """Whether it has the modules for videos."""
    vision_class: ClassVar[type[Any]] = Sam2VisionModel

    vision_encoder: Sam2VisionModel
    shared_image_embedding: Any
    prompt_encoder: Sam2PromptEncoder
    mask_decoder: Sam2MaskDecoder
    no_memory_embedding: Any

    def __init__(
        self,
        config: Any = None,
        *,
        pad_attends: bool | None = None,
        network: sam2.Sam2Model | None = None,
    ) -> None:
        super().__init__()
        if isinstance(config, NetworkConfig):
            config = self.config_class(**config_to_json(replace(config, has_memory=self.has_memory)))
        self.config = config or self.config_class()
        if pad_attends is not None:
            self.config.pad_attends = pad_attends
        self.network_config = network_config(self.config, has_memory=self.has_memory)
        network = network or sam2.Sam2Model(self.network_config)
        self._adopt(network)
        cells = self.network_config.image_size // STRIDES[-1]
        self.prompt_encoder = shared_as(Sam2PromptEncoder, network.prompt_encoder, map_hw=(cells, cells))
        self.mask_decoder = shared_as(Sam2MaskDecoder, network.mask_decoder)
        self.vision_encoder = self.vision_class(self.config.vision_config, network=network.vision_encoder)
        self._engine: tuple[tuple[object, ...], Engine] | None = None

    @classmethod
    def from_network(cls: type[Whole], network: sam2.Sam2Model) -> Whole:
        """A model that shares the weights of a plain network, such as ``masklet.load(…).model``."""
        model = cls(network.config, network=network)
        return model.train(network.training)

    @property
    def network(self) -> sam2.Sam2Model:
        """The plain network, which shares the weights."""
        modules = {
            "vision_encoder": self.vision_encoder.network,
            "prompt_encoder": shared_as(PromptEncoder, self.prompt_encoder),
            "mask_decoder": shared_as(MaskDecoder, self.mask_decoder),
        }
        return self._viewed_as(sam2.Sam2Model, modules=modules, config=self.network_config)

    @property
    def engine(self) -> Engine:
        """The engine for inference; recreated when a weight, the device or the precision has changed.

        Changes through ``parameter.data`` are noticed by the next ``train()`` or ``eval()``.
        """
        tensors = [*self.parameters(), *self.buffers()]
        key = (
            self.device,
            self.dtype,
            *((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors),
        )
        if self._engine is None or self._engine[0] != key:
            self._engine = key, make_engine(self.network)
        return self._engine[1]

    def train(self: Whole, mode: bool = True) -> Whole:  # noqa: D102
        self._engine = None
        return super().train(mode)

    def _apply(self: Whole, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Whole:
        self._engine = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}  # recreated when it is needed

    def get_input_embeddings(self) -> Any:
        """The module that embeds patches."""
        return self.vision_encoder.get_input_embeddings()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Encodes images, as the mask decoder reads them before "no memory" is added.

        Args:
            pixel_values: (batch, 3, height, width), normalised; sides are multiples of 32.
            kwargs: As in ``Sam2VisionModel.forward``.

        Returns:
            ``Sam2VisionEncoderOutput``, whose maps are (h * w, batch, dim), finest first.
        """
        returns_dict = self._wants("return_dict", kwargs.pop("return_dict", None))
        features, output = self._encode(pixel_values, **kwargs)
        output.fpn_hidden_states = [_as_tokens(level) for level in features]
        output.fpn_position_encoding = [_as_tokens(level) for level in output.fpn_position_encoding]
        return output if returns_dict else output.to_tuple()

    def get_image_embeddings(self, pixel_values: Tensor, **kwargs: Any) -> list[Tensor]:
        """Encodes images for ``image_embeddings=``: three maps, finest first; the last has "no memory" added.

        Args:
            pixel_values: (batch, 3, height, width), normalised; sides are multiples of 32.
            kwargs: As in ``Sam2VisionModel.forward``.
        """
        if not kwargs and self._is_plain_inference():
            sam2.check_pixel_values(pixel_values)
            return self._embeddings(self.engine.encode(pixel_values.to(self.dtype)))
        return self._embeddings(self._encode(pixel_values, **kwargs)[0])

    def get_image_wide_positional_embeddings(self) -> Tensor:
        """Positions of the cells of the image embedding, (1, dim, h, w)."""
        map_hw = self.prompt_encoder.map_hw
        return self.shared_image_embedding.grid(map_hw).T.unflatten(1, map_hw)[None].to(self.dtype)

    def get_prompt_embeddings(
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Embeds prompts as the mask decoder reads them. See ``Sam2PromptEncoder.forward``."""
        embeddings: tuple[Tensor | None, Tensor] = self.prompt_encoder(
            input_points, input_labels, input_boxes, input_masks
        )
        return embeddings

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        image_embeddings: Sequence[Tensor] | None = None,
        multimask_output: bool = True,
        attention_similarity: Tensor | None = None,
        target_embedding: Tensor | None = None,
        *,
        pad_attends: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: object,
    ) -> Any:
        """Segments prompted objects in images.

        Args:
            pixel_values: (batch, 3, height, width) from the processor; or give ``image_embeddings``.
            input_points: (batch, objects, points, 2), x then y, pixels of the network's input.
            input_labels: (batch, objects, points): 1 foreground, 0 background, 2 and 3 corners of a box, -10 padding;
                all foreground if None; without effect if there are no points.
            input_boxes: (batch, objects, 4), x0 y0 x1 y1, pixels of the network's input.
            input_masks: Logits, one mask for each object, for each image, or for all. Masks of another size than
                (height / 4, width / 4) are resized with antialias.
            image_embeddings: From ``get_image_embeddings``.
            multimask_output: Three candidates for each object, or one mask.
            attention_similarity: Added to the logits of the attention from tokens to the image, broadcast to
                (batch * objects, heads, tokens, h * w).
            target_embedding: Added to the tokens, broadcast to (batch, objects, tokens, dim). Both as in PerSAM
                (arXiv 2305.03048).
            pad_attends: See ``Sam2Model``.
            output_attentions: Whether to return ``vision_attentions`` and ``mask_decoder_attentions``.
            output_hidden_states: Whether to return ``vision_hidden_states``.
            return_dict: False for a tuple.
            ignored: ``original_sizes``, ``reshaped_input_sizes`` and ``labels``, which processors return as well.

        Returns:
            ``Sam2ImageSegmentationOutput``.

        Raises:
            PromptError: The prompts do not fit together.
            ImageError: No image was given, or one of a wrong shape.
        """
        if unknown := ignored.keys() - IGNORED_INPUTS:
            raise TypeError(f"Sam2Model takes no input called {', '.join(sorted(unknown))}")
        attends = self._wants("output_attentions", output_attentions)
        shows_states = self._wants("output_hidden_states", output_hidden_states)
        embeddings, vision = self._embed(pixel_values, image_embeddings, attends=attends, shows_states=shows_states)
        features = Features(*embeddings)
        prompts = read_prompts(
            input_points, input_labels, input_boxes, input_masks, batch=len(embeddings[-1]), map_hw=features.map_hw
        )
        with recording(self._decoder_attentions(), wanted=attends) as attentions:
            decoded = self._decode(
                features,
                prompts,
                multimask=multimask_output,
                pad_attends=self._wants("pad_attends", pad_attends),
                similarity=attention_similarity,
                target=target_embedding,
            )
        output = Sam2ImageSegmentationOutput(
            decoded.iou_scores,
            decoded.logits,
            decoded.object_scores,
            embeddings,
            vision.hidden_states,
            vision.attentions,
            tuple(a.flatten(0, 1)[:, None] for a in attentions) if attends else None,
        )
        return output if self._wants("return_dict", return_dict) else output.to_tuple()

    def _embed(
        self,
        pixel_values: Tensor | None,
        image_embeddings: Sequence[Tensor] | None,
        *,
        attends: bool,
        shows_states: bool,
    ) -> tuple[list[Tensor], Sam2VisionEncoderOutput]:
        """Image embeddings, given or made, and what the image encoder returns where it is asked for more."""
        if (pixel_values is None) == (image_embeddings is None):
            raise ImageError("expected either pixel_values or image_embeddings, and not both")
        if image_embeddings is not None:
            return [*image_embeddings], Sam2VisionEncoderOutput()
        assert pixel_values is not None
        if not (attends or shows_states) and self._is_plain_inference():
            return self.get_image_embeddings(pixel_values), Sam2VisionEncoderOutput()
        features, vision = self._encode(pixel_values, output_attentions=attends, output_hidden_states=shows_states)
        return self._embeddings(features), vision

    def _encode(self, pixel_values: Tensor, **kwargs: Any) -> tuple[Features, Sam2VisionEncoderOutput]:
        """Features before "no memory" is added, and the output of the image encoder."""
        output = self.vision_encoder(pixel_values, return_dict=True, **kwargs)
        stride4, stride8, stride16 = output.fpn_hidden_states
        decoder = self.mask_decoder
        return Features(decoder.conv_s0(stride4), decoder.conv_s1(stride8), stride16), output

    def _embeddings(self, features: Features) -> list[Tensor]:
        return [features.stride4, features.stride8, self.network.without_memory(features.stride16)]

    def _decode(
        self,
        features: Features,
        prompts: Prompts,
        *,
        multimask: bool,
        pad_attends: bool,
        similarity: Tensor | None,
        target: Tensor | None,
    ) -> DecodedMasks:
        """Masks of prompted objects, from features with "no memory" added."""
        is_personal = similarity is not None or target is not None
        if self._is_plain_inference() and not (is_personal or (pad_attends and prompts.has_padding)):
            return self.engine.decode(features, prompts, multimask=multimask, conditioned=features.stride16)
        network = self.network
        embeddings = embed_prompts(network, prompts, features.stride16, pad_attends=pad_attends)
        positions = network.shared_image_embedding.grid(features.map_hw)
        if is_personal:
            return decode_personalised(
                network.mask_decoder,
                network.mask_decoder.transformer,
                features,
                positions,
                embeddings,
                similarity,
                target,
                multimask=multimask,
            )
        return network.mask_decoder(features, positions, embeddings, multimask=multimask)

    def _is_plain_inference(self) -> bool:
        """Whether an engine may run the network: nothing is trained, and no hook waits for a module to be called."""
        if self.training or torch.is_grad_enabled():
            return False
        return not any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())

    def _decoder_attentions(self) -> list[Any]:
        return [layer.cross_attn_image_to_token for layer in self.mask_decoder.transformer.layers]

    @classmethod
    def _set_resolution(cls, config: Any, side: int) -> None:
        config.prompt_encoder_config.image_size = side


def _as_tokens(level: Tensor) -> Tensor:
    """(batch, dim, h, w) to (h * w, batch, dim)."""
    return level.flatten(2).permute(2, 0, 1)
