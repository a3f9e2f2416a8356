"""The interface of Nuclio's dashboard, as CVAT uses it: an interactor, a tracker and a detector."""
