"""The kit of every report: templates, style, inline pictures, and one way to write a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from cpo_ray.core.statistics import format_interval, format_number

HERE = Path(__file__).parent
STYLE = HERE / "style.css"
SIDE = 384  # larger pictures are shrunk to this side, or the report of an SDXL run would take hundreds of megabytes


def render(template: Path, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Return a page as HTML. `template` may include `style.css` and format with the filters `number` and `interval`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": format_interval, "number": format_number, **(filters or {})}
    return environment.get_template(template.name).render(values)


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return a picture (H, W, 3) uint8 as the address of an inline PNG."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # smaller pictures stay as they are
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
