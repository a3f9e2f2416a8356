"""Whatever people call an image, as (height, width, 3) uint8; and windows of images that do not fit in memory."""
