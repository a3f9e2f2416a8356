"""Videos: frames in, and the memory that carries masks from frame to frame."""
