"""What a model's pictures are worth: generation with fixed prompts and noise, measurement with intervals, and the report."""
