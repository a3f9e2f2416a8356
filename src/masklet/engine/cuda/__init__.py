"""The engine for CUDA devices: few operators, mixed precision, and CUDA graphs.

Products run in bfloat16; norms, residuals, positions and results stay in float32. Constants are made once for a size.
Layers that were replaced, wrapped (LoRA) or hooked run as they are: the part of the network that holds them takes the
plain path.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from masklet.checkpoints.preprocessor import PreprocessorConfig
from masklet.config import SizeHW
from masklet.engine.base import PATCH_STRIDE, Engine, TrackedObjects, version_of
from masklet.engine.cpu.packing import Packed
from masklet.engine.cuda.constants import BySize
from masklet.engine.cuda.graphs import CudaGraphs, GraphBackend, GraphRunner
from masklet.engine.cuda.image_encoder import CudaFrameEncoder, CudaImageEncoder
from masklet.engine.cuda.mask_decoder import CudaMaskDecoder
from masklet.engine.cuda.memory_attention import CudaMemoryAttention
from masklet.engine.cuda.memory_encoder import CudaMemoryEncoder
from masklet.engine.cuda.repvit import CudaRepVitEncoder
from masklet.engine.cuda.tracking import CudaTracker
from masklet.model.hiera import Hiera, window_positions
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PromptEmbeddings, Prompts
from masklet.model.sam2 import Sam2Model, check_pixel_values


class CudaEngine(Engine):
    """For CUDA devices. It runs on others too, without graphs, so that it can be tested there.

    No function of it has gradients, since it reads packed weights.

    Args:
        model: Its packed path needs float32 weights; a model in another type runs its own code.
        precision: Precision of products; bfloat16 where the device has it, if None.
        graphs: What captures functions; ``CudaGraphs`` on a CUDA device, if None.
    """

    name = "cuda"
    is_asynchronous = True
    batches_memory = True

    def __init__(
        self, model: Sam2Model, precision: torch.dtype | None = None, graphs: GraphBackend | None = None
    ) -> None:
        super().__init__(model)
        device = model.device
        self._products = precision or default_precision(device)
        graphs = CudaGraphs(device) if graphs is None and device.type == "cuda" else graphs
        self._runner = GraphRunner(graphs, device)
        neck, decoder = model.vision_encoder.neck, model.mask_decoder
        self._image_encoder = Packed(
            lambda: [model.vision_encoder.backbone, neck, decoder.conv_s0, decoder.conv_s1],
            lambda: pack_image_encoder(model, self._products),
        )
        self._mask_decoder = Packed(
            lambda: [model.mask_decoder, *([model.object_pointer_proj] if model.config.has_memory else [])],
            lambda: CudaMaskDecoder(model, self._products),
        )
        self._memory_attention = Packed(
            lambda: [
                model.memory_attention,
                *([model.temporal_positional_encoding_projection_layer] if model.config.is_v2_1 else []),
            ],
            lambda: CudaMemoryAttention(model, self._products),
        )
        self._memory_encoder = Packed(
            lambda: [model.memory_encoder, *([model.spatial_perceiver] if model.config.is_edgetam else [])],
            lambda: CudaMemoryEncoder(model, self._products),
        )
        self._no_prompt = Packed(lambda: [model.prompt_encoder], self._embed_no_prompt)
        self._tables: BySize[Tensor] = BySize()
        self._frame_encoders: BySize[CudaFrameEncoder] = BySize()
        self._trackers: BySize[CudaTracker] = BySize()

    def __reduce__(self) -> tuple[type[Engine], tuple[object, ...]]:
        return type(self), (self.model, self._products)

    @property
    def products(self) -> torch.dtype:
        """Type of matrix products, from ``precision``."""
        return self._products

    @property
    def pads_memory(self) -> bool:
        """Memory is padded on every device."""
        return True

    def stage(self, values: np.ndarray) -> Tensor:  # noqa: D102
        if self.device.type != "cuda":
            return super().stage(values)
        dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
        pinned = torch.empty(values.shape, dtype=dtype, device="cpu", pin_memory=True)
        # NumPy's copy stays in this thread. PyTorch's would start threads, which several threads at once must not.
        np.copyto(pinned.numpy(), values)
        return pinned

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Features:  # noqa: D102
        check_pixel_values(pixel_values)
        pixel_values = pixel_values.to(self.device, torch.float32)
        encoder = self._image_encoder.get()
        positions = self._position_table((pixel_values.shape[-2], pixel_values.shape[-1]))
        if encoder is None:
            return self.model.encode(pixel_values, positions)
        return Features(*self._runner.run(encoder, (positions,), [pixel_values], count=len(pixel_values)))

    @torch.no_grad()
    def encode_frame(self, frame: Tensor, preprocessor: PreprocessorConfig) -> Features:  # noqa: D102
        encoder, frame_hw = self._image_encoder.get(), (frame.shape[0], frame.shape[1])
        if encoder is None:
            return super().encode_frame(frame, preprocessor)
        positions = self._position_table(preprocessor.input_hw)
        function = self._frame_encoders.get(
            (id(encoder), preprocessor, frame_hw),
            lambda: CudaFrameEncoder(encoder, preprocessor, frame_hw, self.device),
        )
        return Features(*self._runner.run(function, (positions,), [frame[None]]))

    @torch.no_grad()
    def decode(  # noqa: D102
        self,
        features: Features,
        prompts: Prompts | None = None,
        *,
        multimask: bool | None,
        conditioned: Tensor | None = None,
    ) -> DecodedMasks:
        decoder = self._mask_decoder.get()
        prompts = None if prompts is None else prompts.to(self.device)
        if decoder is None:
            return self.model.decode(features, prompts, multimask=multimask, conditioned=conditioned)
        image = self.model.without_memory(features.stride16) if conditioned is None else conditioned
        embedded = self._embed(prompts, image)
        images, objects = len(image), embedded.tokens.shape[1]
        features = features._replace(stride16=image)
        if images == 1 or objects == 1:
            decoded = self._decode(decoder, features, embedded, recurs=prompts is None)
        else:
            decoded = _concatenate([self._decode(decoder, *one, recurs=False) for one in _each(features, embedded)])
        chosen = {None: slice(None), True: slice(1, None), False: slice(1)}[multimask]
        pointers = None if decoded.object_pointers is None else decoded.object_pointers[:, :, chosen]
        return replace(self.model.mask_decoder.select(decoded, multimask), object_pointers=pointers)

    def _decode(
        self, decoder: CudaMaskDecoder, features: Features, prompts: PromptEmbeddings, *, recurs: bool
    ) -> DecodedMasks:
        """All four masks of many objects of one image, or of one object of each image."""
        image, axis = features.stride16, 0 if len(features.stride16) == 1 else 1
        rows = [None if t is None else t.select(axis, 0) for t in (prompts.dense, prompts.tokens, prompts.is_padding)]
        count = max(len(image), prompts.tokens.shape[1])
        inputs = [image, features.stride4, features.stride8, *rows]
        bound = (self._decoder_positions(decoder, features.map_hw),)
        outputs = self._runner.run(decoder, bound, inputs, count=count, recurs=recurs)
        return DecodedMasks(*(output.unsqueeze(axis) for output in outputs))

    def _decoder_positions(self, decoder: CudaMaskDecoder, map_hw: SizeHW) -> Tensor:
        embedding = self.model.shared_image_embedding
        return decoder.positions.get(
            (map_hw, id(embedding.positional_embedding)), lambda: embedding.grid(map_hw).to(decoder.dtype)
        )

    def _embed(self, prompts: Prompts | None, image: Tensor) -> PromptEmbeddings:
        no_prompt = self._no_prompt.get() if prompts is None else None
        if no_prompt is None:
            return self.model.embed_prompts(prompts, image)
        tokens, _, dense = no_prompt.tokens, None, no_prompt.dense
        return PromptEmbeddings(tokens.expand(len(image), -1, -1, -1), None, dense)

    def _embed_no_prompt(self) -> PromptEmbeddings:
        """What the mask decoder reads of a tracked object: made once."""
        like = torch.zeros(1, self.config.hidden_size, 1, 1, device=self.device)
        return self.model.embed_prompts(None, like)

    @torch.no_grad()
    def read_memory(self, features: Features, memory: Memory) -> Tensor:  # noqa: D102
        attention = self._memory_attention.get()
        if attention is None or memory.map_weights is not None:  # weighted keys are rare
            return self.model.read_memory(features, memory)
        constants = attention.constants(features.map_hw, memory.maps.shape[1], memory.pointers.shape[1])
        fields = [memory.maps, memory.map_slots, memory.pointers, memory.pointer_distances, memory.is_empty]
        inputs = [features.stride16, *fields]
        return self._runner.run(attention, (constants,), inputs, count=len(memory.maps))[0]

    @torch.no_grad()
    def write_memory(  # noqa: D102
        self, features: Features, logits: Tensor, object_scores: Tensor, *, binarize: bool
    ) -> Tensor:
        encoder = self._memory_encoder.get()
        if encoder is None:
            return self.model.write_memory(features, logits, object_scores, binarize=binarize)
        inputs = [features.stride16, logits, object_scores]
        return self._runner.run(encoder, (binarize,), inputs, count=len(logits))[0]

    @torch.no_grad()
    def track(self, features: Features, memory: Memory) -> tuple[TrackedObjects, Tensor]:  # noqa: D102
        attention, decoder, encoder = self._memory_attention.get(), self._mask_decoder.get(), self._memory_encoder.get()
        prompt = self._no_prompt.get()
        if attention is None or decoder is None or encoder is None or prompt is None or memory.map_weights is not None:
            return super().track(features, memory)
        parts = (attention, decoder, encoder, prompt)
        tracker = self._trackers.get(tuple(map(id, parts)), lambda: CudaTracker(self.config, *parts))
        constants = attention.constants(features.map_hw, memory.maps.shape[1], memory.pointers.shape[1])
        bound = (constants, self._decoder_positions(decoder, features.map_hw))
        fields = [memory.maps, memory.map_slots, memory.pointers, memory.pointer_distances, memory.is_empty]
        outputs = self._runner.run(tracker, bound, [*features, *fields], count=len(memory.maps))
        return TrackedObjects(*outputs[:-1]), outputs[-1]

    def _position_table(self, input_hw: SizeHW) -> Tensor | None:
        # The base class keeps the last one. A graph was captured with its table, which must be found again.
        trunk = self.model.vision_encoder.backbone
        if not isinstance(trunk, Hiera):
            return None
        size_hw = (input_hw[0] // PATCH_STRIDE, input_hw[1] // PATCH_STRIDE)
        weights = (trunk.pos_embed, trunk.pos_embed_window)
        key = (size_hw, *((id(weight), version_of(weight)) for weight in weights))
        grid, window = (weight.detach() for weight in weights)
        return self._tables.get(key, lambda: window_positions(grid, window, size_hw))


def pack_image_encoder(model: Sam2Model, products: torch.dtype) -> CudaImageEncoder | CudaRepVitEncoder:
    """The packed image encoder of a SAM 2 or an EdgeTAM."""
    return CudaRepVitEncoder(model, products) if model.config.is_edgetam else CudaImageEncoder(model, products)


def default_precision(device: torch.device) -> torch.dtype:
    """Precision of products: bfloat16 on CUDA devices that have it."""
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def _each(features: Features, prompts: PromptEmbeddings) -> list[tuple[Features, PromptEmbeddings]]:
    """Images one by one, with their prompts."""
    images = []
    for number in range(len(features.stride16)):
        one = slice(number, number + 1)
        padding = None if prompts.is_padding is None else prompts.is_padding[one]
        dense = prompts.dense if len(prompts.dense) == 1 else prompts.dense[one]
        maps = (level if len(level) == 1 else level[one] for level in features)
        images.append((Features(*maps), PromptEmbeddings(prompts.tokens[one], padding, dense)))
    return images


def _concatenate(decoded: list[DecodedMasks]) -> DecodedMasks:
    pointers = [one.object_pointers for one in decoded if one.object_pointers is not None]
    return DecodedMasks(
        torch.cat([one.logits for one in decoded]),
        torch.cat([one.iou_scores for one in decoded]),
        torch.cat([one.object_scores for one in decoded]),
        torch.cat([one.mask_tokens for one in decoded]),
        torch.cat(pointers) if pointers else None,
    )
