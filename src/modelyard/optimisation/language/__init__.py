"""Optimisation of language models: matrices on the grids of GGUF, judged by how well texts are foretold."""
