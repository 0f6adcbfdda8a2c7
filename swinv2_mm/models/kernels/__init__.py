"""The model's mathematics, computed faster: C++ on a CPU, Triton on a GPU; ``choose.py`` decides between them."""
