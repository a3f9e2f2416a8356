"""How good masks are: mean IoU from one click and from a box."""
