"""The verbs about a cache, a file each; ``stages/cache.py`` lists them."""
