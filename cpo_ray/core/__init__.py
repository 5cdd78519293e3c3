"""What all rooms speak of: schema, plan, diffusion, prompts, statistics, progress. No Ray."""
