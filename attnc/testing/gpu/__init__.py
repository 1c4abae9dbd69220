"""What `benchmarks/gpu.py` and ``pytest -m gpu`` run on a GPU, or, tiny and interpreted, on a CPU."""
