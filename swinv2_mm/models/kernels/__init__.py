"""The formulas of the model, computed faster: C++ on a CPU, Triton on a GPU, and fewer copies in torch."""
