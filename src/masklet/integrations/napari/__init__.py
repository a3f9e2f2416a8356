"""A napari plugin: points and boxes in layers prompt the model, masks appear in a Labels layer as they are made."""
