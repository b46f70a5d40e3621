"""A small zoo of what users bring: models, tokenizers, data and machines, one builder module per kind.

Every builder writes into a folder that the caller names, takes seconds, and needs neither a network nor `../shared`.
"""
