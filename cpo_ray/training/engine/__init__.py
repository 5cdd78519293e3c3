"""DeepSpeed around one denoiser; the only room that imports it."""
