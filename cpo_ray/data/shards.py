"""Annotated shards: Parquet files of `schema.ANNOTATED`, written all at once or not at all, read at random."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import batched_rows
from pathlib import Path
from typing import Any, NamedTuple, get_args
