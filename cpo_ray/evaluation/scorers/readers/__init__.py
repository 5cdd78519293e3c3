"""The models that scorers look at pictures with: one file for each architecture, weights in safetensors."""
