"""What masklet raises. Each error is also the built-in it resembles, so either may be caught."""


class MaskletError(Exception):
    """Anything masklet itself finds wrong."""


class PromptError(MaskletError, ValueError):
    """Points, boxes or masks that make no sense for the image."""


class ImageError(MaskletError, ValueError):
    """Something that cannot be read as an image."""


class ImageWarning(UserWarning):
    """An image that was read, but hardly shows anything."""


class VideoError(MaskletError, ValueError):
    """Something that cannot be read, or written, as a video."""


class ConfigError(MaskletError, ValueError):
    """Numbers that do not make a SAM 2 network, or a training run."""


class CheckpointError(MaskletError, OSError):
    """A file or folder of weights that is missing, damaged or of another kind."""


class DeviceError(MaskletError, RuntimeError):
    """A device that was asked for and is not there."""


class SessionError(MaskletError, ValueError):
    """A session that cannot be saved, resumed or tracked."""


class DataError(MaskletError, ValueError):
    """A data set that is not laid out, or not labelled, as its reader expects."""


class TrainingError(MaskletError, RuntimeError):
    """A run that cannot continue. What it had learned by its last save is kept."""


class DetectorError(MaskletError, RuntimeError):
    """A detector of words that cannot be loaded, or returns something else than detections."""


class SpoolError(MaskletError, OSError):
    """No space left to store tracking results."""
