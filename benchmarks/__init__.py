"""Scripts and metrics that produce the measured results of the README; run from the repository."""
