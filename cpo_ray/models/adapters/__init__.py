"""LoRA in the formats that people have, and in those that other programs read."""
