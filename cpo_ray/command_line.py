"""The frame of every command line: parse first, and import heavy libraries only when there is work to do.

Exit codes: 0 done, 1 the run could not continue or --check found something missing, 2 the command or the configuration is wrong,
3 the run went well and a figure that was required of it is missed, 130 and 143 stopped by Ctrl-C and SIGTERM.
A user's mistake gets a sentence, a mistake of ours a traceback.
"""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.config import Config, ConfigError, Section, load_as

if TYPE_CHECKING:
    from cpo_ray.preflight.findings import Finding

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"
OURS = ("cpo_ray", "hierarchy")


def parser(
    description: str,
    *,
    resumable: bool = False,
    checkable: bool = True,
    config: Path = CONFIGS / "toy.toml",
    actions: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every job. A job may add its own; `actions` are the choices of its first argument."""
    line = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if actions:
        line.add_argument("action", choices=actions)
    line.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="replace values of the configuration, such as run.seed=1"
    )
    line.add_argument(
        "--config", type=Path, default=config, metavar="FILE", help="configuration in TOML (default: the embedded domain)"
    )
    line.set_defaults(check=False)
    if checkable:
        line.add_argument("--check", action="store_true", help="say what is missing and what the run will take, and stop")
    if resumable:
        line.add_argument("--resume", action="store_true", help="continue the run of this name where it stopped")
    return line


def run(
    line: argparse.ArgumentParser,
    job: str | Callable[..., object],
    check: str | Callable[..., Sequence[Finding]] = "cpo_ray.preflight.checks:check",
    schema: type[Section] = Config,
) -> int:
    """Parse and validate, then do the job, or with --check print what it lacks. Return the exit code.

    The job is called with the configuration and, by name, with its own options. Job and check are functions, or "module:name" of
    functions, which are imported once the command and the configuration are valid.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character gets its number, and the job goes on
            stream.reconfigure(errors="backslashreplace")
    given = vars(line.parse_intermixed_args())
    file, overrides, only_check = (given.pop(name) for name in ("config", "overrides", "check"))
    try:
        config = load_as(schema, file, overrides)
        if only_check:
            return _print(function(check)(config))
        function(job)(config, **given)
    except ConfigError as error:
        return _say(error, 2)
    except (ValueError, RuntimeError) as error:
        # A plain ValueError may be a mistake of ours. Our own classes are sentences for the user, also from a Ray task.
        own = getattr(error, "cause", error)
        if not type(own).__module__.startswith(OURS):
            raise
        return _say(own, getattr(own, "exit_code", 1))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _say(f"the disk is full{where}; free some space or move run.output and targets.folder", 1)
    except KeyboardInterrupt:
        return _say("stopped by Ctrl-C", 130)
    return 0


def function(given: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, or import the one at its "module:name"."""
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _print(findings: Sequence[Finding]) -> int:
    """Print findings and return the exit code."""
    for finding in findings:
        print(f"{finding.verdict:8}{finding.sentence}")
    return 1 if any(finding.verdict == "missing" for finding in findings) else 0


def _say(problem: Exception | str, code: int) -> int:
    print(problem, file=sys.stderr)
    return code
