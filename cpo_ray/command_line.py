"""What the command lines share: parse first, import what is heavy only when there is work to do.

Exit codes: 0 done, 1 the run could not go on or --check found something missing, 2 the command or the configuration
is wrong. A mistake of the user's is answered with a sentence, a mistake of ours with a traceback.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo_ray.config import Config, ConfigError, Settings, load_as

if TYPE_CHECKING:
    from cpo_ray.preflight.findings import Finding

Check = Callable[[Config], "Sequence[Finding]"]

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
    """The arguments that every job takes; a job may add its own, and `actions` of which the first argument names one."""
    line = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if actions:
        line.add_argument("action", choices=actions)
    line.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace values of the file, such as run.seed=1")
    line.add_argument("--config", type=Path, default=config, metavar="FILE", help="default: the embedded domain")
    line.set_defaults(check=False)
    if checkable:
        line.add_argument("--check", action="store_true", help="say what is missing for this configuration, and stop")
    if resumable:
        line.add_argument("--resume", action="store_true", help="go on with the run of this name where it stopped")
    return line


def run(line: argparse.ArgumentParser, job: Callable[[Config, argparse.Namespace], object], check: Check | None = None) -> int:
    """Parse, validate, then do the job or check what it needs; returns the exit code.

    `check` says what --check finds, where a job needs more than `cpo_ray.preflight.checks` looks at.
    """
    return run_as(Config, line, job, check)


def run_as(
    schema: type[Settings],
    line: argparse.ArgumentParser,
    job: Callable[[Settings, argparse.Namespace], object],
    check: Callable[[Settings], Sequence[Finding]] | None = None,
) -> int:
    """`run` for a job whose configuration has another form."""
    arguments = line.parse_intermixed_args()
    try:
        config = load_as(schema, arguments.config, arguments.overrides)
    except ConfigError as error:
        return _say(error, 2)
    try:
        if arguments.check:
            return _check(config, check)
        job(config, arguments)
    except ConfigError as error:
        return _say(error, 2)
    except (ValueError, RuntimeError) as error:
        # A plain ValueError may come from anywhere and be a mistake of ours; our own classes are sentences for the user.
        if not type(error).__module__.startswith(OURS):
            raise
        return _say(error, 1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" at {error.filename}" if error.filename else ""
        return _say(f"the disk is full{where}; free some space or move run.output and targets.folder", 1)
    return 0


def _check(config: Any, check: Callable[[Any], Sequence[Finding]] | None) -> int:
    from cpo_ray.preflight import checks

    findings = (check or checks.check)(config)
    for finding in findings:
        print(f"{finding.verdict:8}{finding.sentence}")
    return 1 if any(finding.verdict == "missing" for finding in findings) else 0


def _say(problem: Exception | str, code: int) -> int:
    print(problem, file=sys.stderr)
    return code
