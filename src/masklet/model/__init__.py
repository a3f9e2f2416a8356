"""The network: tensors in, tensors out. No files, no pictures, no state between calls."""
