"""Images of any kind as (height, width, 3) uint8, folders of images, and windows of images too large for memory."""
