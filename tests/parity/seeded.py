"""Weights that anybody can make again, in place of a checkpoint that would have to be downloaded.

A reference implementation computed the golden files with the same weights, so both sides need only agree on how a
tensor follows from its name and shape. The scales keep activations healthy: no layer saturates, and masks have borders.
"""

import hashlib
import json
import zlib

import numpy as np
import torch


def seeded_weights(manifest_path, sha256):
    """The tensors of a manifest, a JSON file of names and shapes.

    The digest is that of the weights the reference used. Where it differs, no comparison with a golden file would mean
    anything.
    """
    shapes = json.loads(manifest_path.read_text())
    tensors = {name: seeded_tensor(name, shape) for name, shape in shapes.items()}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].tobytes())
    assert digest.hexdigest() == sha256, f"the weights of {manifest_path} are not those of the golden files"
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def seeded_tensor(name, shape):
    """Normal numbers from a generator that is seeded with the name, scaled by the role of the tensor."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    numbers = generator.standard_normal(shape).astype(np.float32)
    *_, owner, role = f".{name}".split(".")
    if role == "bias":
        return numbers * np.float32(0.02)
    if role == "weight" and numbers.ndim == 1:  # of a normalisation
        return 1 + numbers * np.float32(0.1)
    if role == "weight" and "embed" not in owner:
        return numbers / np.float32(np.sqrt(np.prod(shape[1:])))
    return numbers * np.float32(0.1 if role in ("gamma", "scale") else 0.5)
