"""The gallery: every spec of `examples/gallery` beside a dense formula written from its paper.

A module here holds formulas and adds them to `tests.formulas.GALLERY`; `test_gallery.py` runs them all.
"""
