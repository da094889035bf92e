"""Token sequences: documents read and split, tokenized, packed, kept as a *packing contract*, and read as a dataset.

A packing contract is a folder that says which tokens stand where, so that a teacher and its students see the same ones.
``softlabels tokenize`` writes it, ``--data tokens:FOLDER`` reads it.
"""
