"""Classes with the names and signatures of other packages, over the same engine and tracker as everything else."""
