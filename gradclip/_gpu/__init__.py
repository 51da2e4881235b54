"""The engines of leaves on GPUs: the two passes over CuPy arrays. Imported when a first leaf lies on a GPU; see README.md."""
