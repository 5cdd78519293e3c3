"""Pages of their own, without a network: runs, sweeps, reviews, and the kit that they share."""
