"""How good masks are: of pictures, after clicks and from a box; of films; and of everything in a picture."""
