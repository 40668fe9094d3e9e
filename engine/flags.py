"""Flags from a dataclass, and the one way to leave with an error.

A command's settings are a dataclass. Each field is a flag, the comment behind the field is its help
text, and `limits` says beside the field which values it can have:

    prompts: int = limits(128, at_least=1)      # problems in a step (paper: 128)

`parse` makes the flags and checks the limits. `command` runs the work; whatever a person got wrong
ends there, in one line and with exit code 2. Nothing here imports torch, so that --help is quick.
"""
import argparse
import dataclasses
import inspect
import math
import os
import re
import sys
import types
import typing


def stop(message, code: int = 2) -> typing.NoReturn:
    """Say in one line what is wrong, and leave."""
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)


# ---- limits ----------------------------------------------------------------------------------
CHECKS = {"at_least": (lambda value, limit: value >= limit, "at least"),
          "above": (lambda value, limit: value > limit, "above"),
          "at_most": (lambda value, limit: value <= limit, "at most"),
          "below": (lambda value, limit: value < limit, "below"),
          "one_of": (lambda value, limit: value in limit, "one of")}


def limits(default, **bounds):
    """A dataclass field with a default and bounds: at_least, above, at_most, below, one_of. Those of
    a list are for each of its values."""
    if unknown := bounds.keys() - CHECKS.keys():
        raise TypeError(f"limits are {', '.join(CHECKS)}, not {', '.join(unknown)}")
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=bounds)
    return dataclasses.field(default=default, metadata=bounds)


def check(settings) -> None:
    """ValueError for the first setting that is outside its limits, or a float that is no number."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} = {value}: not a finite number")
        for name, limit in field.metadata.items():
            fits, words = CHECKS[name]
            each = value if isinstance(value, list) else [value]
            if value is not None and not all(fits(one, limit) for one in each):
                shown = ", ".join(filter(None, limit)) if name == "one_of" else limit
                raise ValueError(f"{field.name} = {value}: {words} {shown}")


# ---- flags -----------------------------------------------------------------------------------
class _Parser(argparse.ArgumentParser):
    def error(self, message):
        underscored = re.search(r"--\w+_\w+", message)
        if underscored and (flag := underscored[0].replace("_", "-")) in self._option_string_actions:
            message += f": write {flag}"
        stop(f"{message} (--help lists the flags)")


def _source(settings_class):
    """The comment behind each field and its group, the last line `# ---- the ...` above it. The
    fields of the class itself come before those of the classes that it extends."""
    comments, groups = {}, {}
    for kind in filter(dataclasses.is_dataclass, settings_class.__mro__):
        group, last, known = "the method", None, set(comments)
        for line in inspect.getsource(kind).splitlines():
            if heading := re.match(r"    # ---- (.+)", line):
                group, last = heading[1], None
            elif field := re.match(r"    (\w+): [^#]*(?:#\s*(.*))?$", line):
                last = None if field[1] in known else field[1]
                if last:
                    comments[last], groups[last] = field[2] or "", group
            elif re.match(r"    (def|@)", line):            # methods follow the fields
                break
            elif last and (more := re.match(r"\s+#\s*(.*)", line)):
                comments[last] += " " + more[1]
    return comments, groups


def _flag(field, kind, comment: str) -> dict:
    """What argparse has to know of a field."""
    if isinstance(kind, types.UnionType):                       # `str | None`: a str if given
        kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    required = default is dataclasses.MISSING
    shown = "required" if required else f"default {default}"
    help_text = comment + (f" [{shown}]" if default not in (None, "", []) else "")
    flag = {"help": help_text.replace("%", "%%"), "default": None if required else default}
    if "one_of" in field.metadata:
        flag["metavar"] = "{" + ",".join(filter(None, field.metadata["one_of"])) + "}"
    if typing.get_origin(kind) is list:
        return flag | {"type": typing.get_args(kind)[0], "nargs": "+", "required": required}
    if kind is bool:
        return flag | {"action": argparse.BooleanOptionalAction, "required": required}
    return flag | {"type": kind, "required": required}


def parse(settings_class, description: str, positional: str = "", argv=None):
    """The settings that a command line asks for: `max_new_tokens: int = 64` is --max-new-tokens.

    A field without a default is required, a list takes one or more values, a bool also makes
    --no-NAME. The field named by `positional` is given without a flag.
    """
    parser = _Parser(description=description, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, (comments, group_of) = typing.get_type_hints(settings_class), _source(settings_class)
    fields = {field.name: field for field in dataclasses.fields(settings_class)}
    groups = {}
    if len(set(group_of.values())) == 1:        # A command with few flags needs no groups.
        groups["the method"] = parser
    for name, comment in comments.items():
        group, flag = group_of[name], _flag(fields[name], hints[name], comment)
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        if name == positional:
            several = {"nargs": "+"} if "nargs" in flag else {}
            groups[group].add_argument(name, help=flag["help"], type=flag["type"], **several)
        else:
            groups[group].add_argument("--" + name.replace("_", "-"), dest=name, **flag)
    settings = settings_class(**vars(parser.parse_args(argv)))
    sys.excepthook = _end_quietly
    for name, value in vars(settings).items():      # "$DIR", where this variable is not set
        if value == "" and fields[name].default != "" or isinstance(value, list) and "" in value:
            stop(f"{name} is empty")
    try:
        check(settings)
    except ValueError as error:
        stop(error)
    return settings


def _end_quietly(kind, error, trace) -> None:
    """Ctrl-C while torch is imported is no reason for a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print(f"{os.path.basename(sys.argv[0])}: stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# ---- the end of a command --------------------------------------------------------------------
class Stopped(Exception):
    """Somebody asked a run to stop, and it has saved what it had."""


def command(work, *arguments) -> None:
    """Call work(*arguments). Whatever ends it early ends in one line and an exit code."""
    code, words = 0, ""
    torch = sys.modules.get("torch")            # a command that does not need it has not imported it
    out_of_memory = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    if hasattr(sys.stdout, "reconfigure"):      # A terminal that knows only ASCII shows \xb1 for ±.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        work(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:                     # Nobody reads any more what it prints: `| head`.
        code = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        code, words = 2, str(error)
    except out_of_memory as error:
        code, words = 2, (f"{str(error).split('. ')[0]}: see engine/README.md, \"Out of memory\"")
    except RuntimeError as error:               # How torch says it on a CPU.
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        code, words = 2, "out of memory: see engine/README.md, \"Out of memory\""
    except FloatingPointError as error:
        code, words = 1, str(error)
    except (Stopped, KeyboardInterrupt) as error:
        code, words = 130, str(error) or "stopped"
    except SystemExit as error:                 # from `stop`, which has said why
        code = error.code
    if words:
        print(f"{os.path.basename(sys.argv[0])}: {' '.join(words.split())}", file=sys.stderr)
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)      # Leave at once: gloo's threads can crash a normal shutdown.
    if code:
        raise SystemExit(code)
