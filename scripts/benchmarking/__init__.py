"""What `scripts/benchmark` measures, one file a subject."""
