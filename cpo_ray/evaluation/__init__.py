"""Quality of a model's pictures: generation from fixed prompts and noise, measurement with intervals, and the report."""
