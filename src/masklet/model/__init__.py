"""The network: tensors in, tensors out. No files, no images, no state between calls."""
