"""A network whose parts have the names and signatures of Meta's ``SAM2Base``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from masklet.checkpoints.meta import convert_meta, meta_name, meta_tensors
from masklet.config import STRIDE, STRIDES, SizeHW
from masklet.engine import Engine, make_engine
from masklet.model.neck import Features
from masklet.model.positions import sine_positions_2d
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, PromptEmbeddings
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor

State = dict[str, Any]


class SAM2Base(nn.Module):
    """A ``Sam2Model`` with Meta's names: its parts, its parameters and its state dict.

    ``state_dict`` and ``load_state_dict`` use the names of Meta's ``.pt`` files, so that what is saved here loads there
    and the other way round. ``named_parameters`` uses them as well, for code that freezes parts by name; but keys and
    values of EdgeTAM's perceiver, one tensor in those files, are two parameters here.

    Args:
        network: The network.
        image_processor: How images are prepared; None for that of the published checkpoints.
    """

    def __init__(self, network: Sam2Model, image_processor: ImageProcessor | None = None) -> None:
        super().__init__()
        self.network = network
        self.image_processor = image_processor or ImageProcessor(network.config.image_size)
        # Attributes, but not submodules: the network registers their weights, and loads them.
        self.__dict__["image_encoder"] = ImageEncoderPart(network)
        self.__dict__["sam_prompt_encoder"] = PromptEncoderPart(network)
        self.__dict__["sam_mask_decoder"] = MaskDecoderPart(network)
        self._engine: tuple[Engine, torch.device, torch.dtype] | None = None
        self.train(network.training)

    @property
    def engine(self) -> Engine:
        """The engine of predictors; recreated when the network has moved to another device or precision."""
        network = self.network
        if self._engine is None or self._engine[1:] != (network.device, network.dtype):
            self._engine = make_engine(network), network.device, network.dtype
        return self._engine[0]

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.image_processor.input_hw[0]

    @property
    def hidden_dim(self) -> int:
        """Channels of the image embedding."""
        return self.network.config.hidden_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.device

    @property
    def no_mem_embed(self) -> Tensor:
        """(1, 1, dim): added to the image embedding of images, which have no memory."""
        return self.network.no_memory_embedding

    directly_add_no_mem_embed = True
    num_feature_levels = 3

    def train(self, mode: bool = True) -> SAM2Base:  # noqa: D102
        super().train(mode)
        for part in (self.image_encoder, self.sam_prompt_encoder, self.sam_mask_decoder):
            part.train(mode)
        return self

    def forward(self, *_: Any, **__: Any) -> None:
        """As in Meta's class: the predictors call the parts."""
        raise NotImplementedError("call SAM2ImagePredictor or SAM2VideoPredictor with this network, or its parts")

    def forward_image(self, img_batch: Tensor) -> State:
        """Encodes images (batch, 3, side, side), normalised, to a dict of maps, finest first.

        ``backbone_fpn``: (batch, dim / 8, 4h, 4w), (batch, dim / 4, 2h, 2w) and (batch, dim, h, w), which is
        ``vision_features`` as well; ``vision_pos_enc``: positions of each.
        """
        return _backbone_output([*self.network.encode(img_batch)])

    def state_dict(self, *args: Any, destination: State | None = None, prefix: str = "", **kwargs: Any) -> State:  # type: ignore[override]
        """The weights under the names of Meta's files."""
        found = meta_tensors(self.network.state_dict(*args, **kwargs))
        destination = {} if destination is None else destination
        destination.update((prefix + name, tensor) for name, tensor in found.items())
        return destination

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights of Meta's layout.

        Returns:
            ``missing_keys`` and ``unexpected_keys``, in Meta's names.

        Raises:
            RuntimeError: There are such keys and ``strict`` is set, or a shape differs.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        expected = self.state_dict().keys()
        result.missing_keys[:] = [name for name in expected if name not in state_dict]
        result.unexpected_keys[:] = [name for name in state_dict if name not in expected]
        if strict and (result.missing_keys or result.unexpected_keys):
            raise RuntimeError(
                f"the state dict does not fit: missing {_few(result.missing_keys)}, unexpected "
                f"{_few(result.unexpected_keys)}. Expected Meta's names, of a network of the same size"
            )
        return result

    def _load_from_state_dict(self, state_dict: State, prefix: str, *args: Any) -> None:
        """Renames the weights for the network. Modules that hold this one load through here as well."""
        given = {name.removeprefix(prefix): state_dict.pop(name) for name in [*state_dict] if name.startswith(prefix)}
        state_dict.update((f"{prefix}network.{name}", tensor) for name, tensor in convert_meta(given).items())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def named_parameters(  # noqa: D102
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        start = f"{prefix}." if prefix else ""
        for name, parameter in self.network.named_parameters("", recurse, remove_duplicate):
            yield start + meta_name(name), parameter

    def __getattr__(self, name: str) -> Any:
        """Modules whose names are the same in both packages."""
        if name in ("memory_attention", "memory_encoder", "spatial_perceiver"):
            return getattr(self.network, name)
        return super().__getattr__(name)


class ImageEncoderPart(nn.Module):
    """Trunk and neck."""

    def __init__(self, network: Sam2Model) -> None:
        super().__init__()
        self.encoder = network.vision_encoder

    @property
    def trunk(self) -> nn.Module:
        """Hiera, or EdgeTAM's RepViT."""
        return self.encoder.backbone

    @property
    def neck(self) -> nn.Module:
        """The feature pyramid."""
        return self.encoder.neck

    def forward(self, sample: Tensor) -> State:
        """As ``SAM2Base.forward_image``, with all maps (batch, dim, ...), before the decoder's skip convolutions."""
        weight = next(self.encoder.neck.parameters())  # norms may have another dtype
        return _backbone_output([*self.encoder(sample.to(weight.dtype))])


class PromptEncoderPart(nn.Module):
    """Points, boxes and masks to tokens and a map."""

    def __init__(self, network: Sam2Model) -> None:
        super().__init__()
        self.encoder = network.prompt_encoder
        self.embed_dim = network.config.hidden_size
        side = network.config.image_size
        self.input_image_size = (side, side)
        self.image_embedding_size = (side // STRIDE, side // STRIDE)
        self.mask_input_size = (side // STRIDES[0], side // STRIDES[0])

    def get_dense_pe(self) -> Tensor:
        """(1, dim, h, w): the positions of the cells of the image embedding."""
        height, width = self.image_embedding_size
        grid: Tensor = self.encoder.shared_embedding.grid(self.image_embedding_size)  # (h*w, dim)
        return grid.T.reshape(1, -1, height, width)

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeds prompts, in pixels of the network's input.

        Args:
            points: (objects, points, 2), x then y, and their labels (objects, points): 1 foreground, 0 background, 2
                and 3 the corners of a box, -1 none. Without boxes, "not a point" is added at the end.
            boxes: (objects, 4), x0 y0 x1 y1.
            masks: (objects, 1, 4h, 4w) logits.

        Returns:
            Sparse (objects, tokens, dim), which may have no tokens, and dense (objects, dim, h, w) embeddings.
        """
        tokens = []
        if points is not None:
            coordinates, labels = points
            if boxes is None:
                coordinates = torch.cat([coordinates, coordinates.new_zeros(len(coordinates), 1, 2)], dim=1)
                labels = torch.cat([labels, labels.new_full((len(labels), 1), NOT_A_POINT)], dim=1)
            tokens.append(self._embed(coordinates, labels))
        if boxes is not None:
            corners = boxes.reshape(-1, 2, 2)
            labels = torch.tensor([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]], device=boxes.device).expand(len(corners), 2)
            tokens.append(self._embed(corners, labels))
        objects = next((len(t) for t in (*tokens, masks) if t is not None), 1)
        weight = self.encoder.not_a_point_embed.weight
        sparse = torch.cat(tokens, dim=1) if tokens else weight.new_zeros(objects, 0, self.embed_dim)
        dense = self.encoder.embed_masks(None if masks is None else masks[None, :, 0], self.image_embedding_size)
        return sparse, dense[0].expand(objects, -1, -1, -1)

    def _embed(self, points: Tensor, labels: Tensor) -> Tensor:
        embedded: Tensor = self.encoder.embed_points(points[None], labels[None].long(), self.input_image_size)
        return embedded[0]


class MaskDecoderPart(nn.Module):
    """Embeddings of an image and of prompts to masks."""

    def __init__(self, network: Sam2Model) -> None:
        super().__init__()
        self.decoder = network.mask_decoder

    @property
    def conv_s0(self) -> nn.Module:
        """Makes the finest map for the decoder."""
        return self.decoder.conv_s0

    @property
    def conv_s1(self) -> nn.Module:
        """Makes the map before it."""
        return self.decoder.conv_s1

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        repeat_image: bool,
        high_res_features: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decodes prompts to masks.

        Args:
            image_embeddings: (1, dim, h, w) if repeated, otherwise (objects, dim, h, w).
            image_pe: (1, dim, h, w), from ``get_dense_pe``.
            sparse_prompt_embeddings: (objects, tokens, dim), from the prompt encoder.
            dense_prompt_embeddings: (objects, dim, h, w), from the prompt encoder.
            multimask_output: Three candidates, or one mask.
            repeat_image: Whether all objects are in one image, or each has an image of its own.
            high_res_features: (1 or objects, dim / 8, 4h, 4w) and (1 or objects, dim / 4, 2h, 2w).

        Returns:
            Logits (objects, masks, 4h, 4w), predicted IoU (objects, masks), mask tokens (objects, masks, dim) and
            object scores (objects, 1).
        """
        if high_res_features is None:
            raise ValueError("high_res_features is None: expected the two finer maps, which every SAM 2 network reads")
        stride4, stride8 = high_res_features
        place = 0 if repeat_image else 1  # of the axis that has one entry: images, or objects of each image
        decoded = self.decoder(
            Features(stride4, stride8, image_embeddings),
            image_pe.flatten(2)[0].T,
            PromptEmbeddings(sparse_prompt_embeddings.unsqueeze(place), None, dense_prompt_embeddings.unsqueeze(place)),
            multimask=multimask_output,
        )
        outputs = (decoded.logits, decoded.iou_scores, decoded.mask_tokens, decoded.object_scores)
        logits, iou_scores, tokens, scores = (output.squeeze(place) for output in outputs)
        return logits, iou_scores, tokens, scores


def _backbone_output(maps: list[Tensor]) -> State:
    def positions(level: Tensor) -> Tensor:
        height, width = level.shape[-2:]
        map_hw: SizeHW = (height, width)
        return sine_positions_2d(map_hw, maps[-1].shape[1], level.device).T.reshape(1, -1, height, width)

    return {
        "vision_features": maps[-1],
        "vision_pos_enc": [positions(level).expand(len(level), -1, -1, -1) for level in maps],
        "backbone_fpn": maps,
    }


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
