"""Runs exported folders with numpy and onnxruntime. Nothing here imports torch."""
