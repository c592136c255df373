"""Scaling studies: how the loss falls with the size of the model and of the corpus.

The files in reading order: grid.py has the cells and their corpora, study.py trains them and reads
what came of them, fit.py finds the laws of Kaplan and Chinchilla in that, figures.py draws it.
"""
