"""How good masks are: of images, after clicks and from a box; of videos; and of everything in an image."""
