"""What EdgeTAM (arXiv 2501.07256) puts in the place of SAM 2's parts: a small trunk, and a memory of few tokens."""
