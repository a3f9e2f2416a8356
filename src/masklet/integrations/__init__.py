"""Plug-ins for programs that load Python code: CVAT's command line and agents, napari, FiftyOne."""
