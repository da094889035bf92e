"""Files that compute logits: written, opened in their own runtime, tried, timed.

Layers above, ``evaluation`` and ``compression``, say what is to be made of them.
"""
