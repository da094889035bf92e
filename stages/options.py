"""From a stage's configuration class to its click command: an option exists once, as a field of the dataclass.

A command also takes ``--params FILE:SECTION``, the same options from a parameter file (what is typed wins), and, where
it reads many directories, ``--each FILE``; see ``stages/parameters.py``.

Exit status: 0 done, 1 the work failed with a named error, 2 wrong usage, 130 interrupted. Bugs keep their traceback.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.metadata
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click

from pipeline.configuration import Config
from pipeline.errors import ConfigError, SoftlabelsError
from stages.parameters import fill, read_params
from stages.progress import TerminalProgress

INTERRUPTED = 130
_OUTSIDE = frozenset(
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EPERM", "EROFS")
    if hasattr(errno, name)
)
"""What the system says of a full disk, a read-only folder and the like: no bug, so no traceback."""


class Report(Protocol):
    """What every stage's ``run`` returns."""

    @property
    def summary(self) -> str: ...

    def as_dict(self) -> dict[str, Any]: ...


class Failure(click.ClickException):
    """A named error: one message on standard error, no traceback."""

    def __init__(self, error: SoftlabelsError, context: click.Context | None = None) -> None:
        super().__init__(str(error))
        self.hint = ""
        if isinstance(error, ConfigError):
            self.exit_code = 2  # type: ignore[misc]  # click declares it on the class and reads it from the instance
            self.hint = f"Try '{context.command_path} --help' for the options." if context else ""

    def show(self, file: typing.IO[Any] | None = None) -> None:
        """Print the message, and for wrong usage where to look."""
        click.echo(f"error: {self.format_message()}", file=file, err=True)
        if self.hint:
            click.echo(self.hint, file=file, err=True)


@contextmanager
def named_errors(context: click.Context | None = None) -> Iterator[None]:
    """Turn SoftlabelsError, a full or read-only disk, and Ctrl-C into an exit status and a line; let bugs through."""
    try:
        yield
    except SoftlabelsError as error:
        raise Failure(error, context) from error
    except OSError as error:
        if error.errno not in _OUTSIDE or error.filename is None:
            raise
        what = f"{error.filename}: {error.strerror}. Put that right and run the same command again"
        raise Failure(SoftlabelsError(what)) from error
    except KeyboardInterrupt:
        click.echo("\ninterrupted; run the same command again to resume", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


class Command(click.Command):
    """A click command that ends with the statuses above."""

    def invoke(self, ctx: click.Context) -> Any:
        with named_errors(ctx):
            return super().invoke(ctx)


def normalise(token: str) -> str:
    """``--batch_size`` means ``--batch-size``: parameter files write underscores."""
    return token.replace("_", "-")


SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": normalise,
    "max_content_width": 110,
    "show_default": True,
}


json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON on standard output")


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "part"), counted(1234, "part")
    ('1 part', '1,234 parts')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def version() -> str:
    """The installed version, or "uninstalled" for a bare checkout."""
    try:
        return importlib.metadata.version("softlabels")
    except importlib.metadata.PackageNotFoundError:
        return "uninstalled"


def option_type(annotation: Any) -> tuple[Any, bool]:
    """The click type of an annotation, and whether the option may be given several times. A pair takes two values.

    >>> option_type(int | None), option_type(tuple[float, ...])
    ((<class 'int'>, False), (<class 'float'>, True))

    Raises TypeError for what no option can hold.
    """
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(inner) == 1:
            return option_type(inner[0])
    if typing.get_origin(annotation) is tuple and typing.get_args(annotation)[1:] == (Ellipsis,):
        return option_type(typing.get_args(annotation)[0])[0], True
    if typing.get_origin(annotation) is tuple:
        return tuple(option_type(inner)[0] for inner in typing.get_args(annotation)), False
    if annotation is Path:
        return click.Path(path_type=Path), False
    if annotation in (int, float, bool, str):
        return annotation, False
    raise TypeError(f"no command-line option can hold {annotation!r}")


def options_of(config: type[Config]) -> list[click.Option]:
    """The click options of a configuration class: its own fields first, then those of each class that it is made of."""
    hints = typing.get_type_hints(config)
    declared = [inspect.get_annotations(base) for base in config.__mro__]

    def depth(field: dataclasses.Field[Any]) -> int:
        return next(number for number, names in enumerate(declared) if field.name in names)

    fields = sorted(dataclasses.fields(config), key=depth)
    return [_option(field, hints[field.name]) for field in fields]


def _option(field: dataclasses.Field[Any], annotation: Any) -> click.Option:
    kind, multiple = option_type(annotation)
    name = "--" + field.name.replace("_", "-")
    settings: dict[str, Any] = {"type": kind, "help": _help(field, multiple), "metavar": field.metadata.get("metavar")}
    if field.metadata.get("choices") and not settings["metavar"]:
        # Shown here, checked by the configuration: it reports all problems together, from Python as well.
        settings["metavar"] = "[" + "|".join(field.metadata["choices"]) + "]"
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        settings["required"] = True
    elif not (multiple and not default) and default is not None:
        settings["default"] = default
        settings["show_default"] = default != ""
    if kind is bool:
        name = f"{name}/--no-{name[2:]}"
        settings.pop("metavar")
        settings.setdefault("default", None)
    return click.Option([name, field.name], multiple=multiple, **settings)


def _help(field: dataclasses.Field[Any], multiple: bool) -> str:
    text = str(field.metadata.get("help", "")).rstrip(".")
    return f"{text} (may be repeated)" if multiple else text


def _load_params(ctx: click.Context, _: click.Parameter, texts: tuple[str, ...]) -> None:
    known = {parameter.name: parameter for parameter in ctx.command.params}
    values: dict[str, Any] = {}
    with named_errors(ctx):
        for text in texts:
            section = read_params(text)
            unknown = sorted(set(section) - set(known))
            if unknown:
                raise ConfigError(f"--params {text} holds what {ctx.command_path} does not know: {', '.join(unknown)}")
            for name, value in section.items():
                values[name] = [value] if getattr(known[name], "multiple", False) and isinstance(value, str) else value
    given = {**(ctx.default_map or {}), **values}
    # A later section takes an option of an earlier one back with null.
    ctx.default_map = {name: value for name, value in given.items() if value is not None}


def options_from(
    config: type[Config], extra: Sequence[click.Option] = (), arguments: Mapping[str, str] = {}
) -> Callable[[Callable[[Any, bool], None]], Callable[..., None]]:
    """Decorate ``function(config, json)`` with the options of ``config``: it is called with a checked instance.

    ``extra``: options that act by themselves, such as one that prints something and ends the command. ``arguments``:
    fields that are typed without their name (field -> metavar), any number of them.
    """
    named: list[click.Parameter] = [*options_of(config)]
    typed = [click.Argument([name], nargs=-1, metavar=metavar) for name, metavar in arguments.items()]
    options = [*typed, *(o for o in named if o.name not in arguments), params_option(), *extra]
    if _many_paths(config):
        options.append(each_option())
    options.append(click.Option(["--json"], is_flag=True, help="print the whole report as JSON on standard output"))

    def decorate(function: Callable[[Any, bool], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapper(**values: Any) -> None:
            function(settings_from(config, values), values["json"])

        # click reads __click_params__ from the innermost decorator outwards, hence the reversal.
        wrapper.__click_params__ = options[::-1]  # type: ignore[attr-defined]
        return wrapper

    return decorate


def settings_from(config: type[Config], values: Mapping[str, Any]) -> Config:
    """The configuration that parsed options stand for. Raises ConfigError with all of its problems."""
    fields = {field.name: values[field.name] for field in dataclasses.fields(config)}
    if values.get("each") is not None:
        lists = read_params(values["each"], "--each")
        fields |= {name: fill(fields[name], lists) for name in _many_paths(config)}
    return config(**fields)


def _many_paths(config: type[Config]) -> list[str]:
    hints = typing.get_type_hints(config)
    fields = dataclasses.fields(config)
    return [field.name for field in fields if hints[field.name] == tuple[Path, ...] or field.metadata.get("paths")]


def params_option() -> click.Option:
    """``--params``, which is read before the other options."""
    return click.Option(
        ["--params"],
        multiple=True,
        is_eager=True,
        expose_value=False,
        callback=_load_params,
        metavar="FILE[:SECTION]",
        help="options from a section of a YAML or JSON file; the command line wins (may be repeated)",
    )


def each_option() -> click.Option:
    """``--each``, for commands that read many directories."""
    return click.Option(
        ["--each"],
        metavar="FILE[:SECTION]",
        help="fill {name} in paths with each value of the list, or key of the section, of that name in this file",
    )


def listing_option(name: str, text: Callable[[], str], help: str) -> click.Option:
    """A flag that prints a text and ends the command, whatever else was typed."""

    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(text())
            ctx.exit()

    return click.Option([name], is_flag=True, is_eager=True, expose_value=False, callback=show, help=help)


def stage_command(
    name: str,
    config: type[Config],
    run: Callable[..., Report],
    text: str | None,
    extra: Sequence[click.Option] = (),
    arguments: Mapping[str, str] = {},
) -> click.Command:
    """The command of one stage: options from ``config``, progress on standard error, the report on standard output."""

    @click.command(name, cls=Command, help=text, context_settings=SETTINGS)
    @options_from(config, extra, arguments)
    def command(settings: Any, as_json: bool) -> None:
        report = run(settings, TerminalProgress())
        print_report(report, as_json)

    return command


def verb_command(
    name: str,
    config: type[Config],
    run: Callable[..., Report],
    text: str | None,
    arguments: Mapping[str, str],
    printed: Callable[[Any, bool], None] | None = None,
) -> click.Command:
    """The command of a verb about caches: as ``stage_command``, with some fields as arguments (field -> metavar).

    ``printed``: prints the report, where one line is not enough.
    """
    show = printed or print_report
    named = {option.name: option for option in options_of(config)}
    positional = [
        click.Argument(
            [field], type=named[field].type, metavar=metavar, nargs=-1 if named[field].multiple else 1, required=True
        )
        for field, metavar in arguments.items()
    ]
    options = [option for field, option in named.items() if field not in arguments]

    def callback(as_json: bool, **values: Any) -> None:
        show(run(config(**values), TerminalProgress()), as_json)

    json_flag = click.Option(
        ["--json", "as_json"], is_flag=True, help="print the whole report as JSON on standard output"
    )
    parameters: list[click.Parameter] = [*positional, *options, params_option(), json_flag]
    return Command(name, params=parameters, callback=callback, help=text, context_settings=SETTINGS)


def print_report(report: Report, as_json: bool) -> None:
    """One line of what was made and where, or the whole report as JSON."""
    click.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) if as_json else report.summary)
