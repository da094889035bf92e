"""Work on whole caches, without a teacher and without torch: rewrite, join, compare, import, list and describe them.

plan -> building      how a cache is made from anything that yields its parts
origins               where the entries of a new cache lie in old ones
transcode, subset, merge, difference, catalog, ...      one verb each
"""
