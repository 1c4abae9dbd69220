"""Tile programs printed as Triton source. Imports neither torch nor triton."""
