"""The command line: one thin click command per stage of ``pipeline/``, and the verbs about a cache."""
