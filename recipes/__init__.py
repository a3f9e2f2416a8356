"""How the models in this repository are made. Not part of the installed package."""
