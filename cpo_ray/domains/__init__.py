"""Domains: worlds of pictures that say what to ask for, read labels from pictures, and score them."""
