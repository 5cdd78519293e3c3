"""A search over what stage 2 can be told (ω, β, learning rate, objective, share of data) that never calls the expert twice."""
