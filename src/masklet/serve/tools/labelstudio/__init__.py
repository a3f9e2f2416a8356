"""The interface of Label Studio's machine learning back ends."""
