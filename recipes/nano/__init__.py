"""How the embedded model, nano, is made: see README.md."""
