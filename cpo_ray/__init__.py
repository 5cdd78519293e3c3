"""Complex Preference Optimization (CPO) of image generators on Ray and DeepSpeed."""

__version__ = "0.1.0"
