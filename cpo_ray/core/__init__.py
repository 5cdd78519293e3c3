"""The ground that all other packages build on: schema, plan, diffusion, prompts, statistics, files and progress. No Ray."""
