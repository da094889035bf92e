"""The tree of errors is the one its docstring draws."""

from __future__ import annotations

import errno
import inspect
import pickle
import re
from pathlib import Path

from pipeline import errors


def test_the_docstring_draws_the_tree():
    drawn = set(re.findall(r"\w+Error\b", errors.__doc__ or ""))
    defined = {n: c for n, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__}
    assert set(defined) == drawn - {"ValueError", "RuntimeError", "ImportError", "OSError"}
    assert all(issubclass(c, errors.SoftlabelsError) for c in defined.values())


def test_a_handler_can_catch_by_purpose():
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.TemperatureError, errors.EncodingError)
    for name in ("NotFound", "Format", "Incomplete", "Corrupt", "Mismatch"):
        assert issubclass(getattr(errors, f"Cache{name}Error"), errors.CacheError)


def test_a_full_disk_is_an_error_of_the_system_as_well():
    error = pickle.loads(pickle.dumps(errors.DiskFullError("no room", Path("a"), needed=5, free=3)))
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
    assert (str(error), error.path, error.needed, error.free) == ("no room", Path("a"), 5, 3)


def test_all_problems_are_reported_together():
    error = errors.ConfigError(["first", "second"])
    assert error.problems == ("first", "second")
    assert "2 problems" in str(error) and "second" in str(error)
    assert str(errors.ConfigError("only")) == "only"
