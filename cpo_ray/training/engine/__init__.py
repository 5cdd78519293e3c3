"""DeepSpeed around one denoiser; the only package that imports it."""
