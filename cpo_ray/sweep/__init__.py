"""Search settings of stage 2 on one expert and one set of targets."""
