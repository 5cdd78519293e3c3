"""Training on target shards: one worker code for the expert (stage 1), CPO (stage 2) and the baselines."""
