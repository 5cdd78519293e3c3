"""The registries: what can be chosen by name, and where it is defined. An entry is one line here, and one file elsewhere.

No other place lists these names: types, errors, help and documentation take them from here. Code outside of this package needs no
entry, since "module:name" is accepted wherever a name is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from cpo_ray.config.section import ConfigError


class Registry:
    """Names of one kind of thing, each with the "module:name" that it is loaded from at its first use."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The registered names, in order."""
        return tuple(self._entries)

    def load(self, name: str) -> Any:
        """Return what is registered under the name, or defined at "module:name".

        Raises ConfigError for an unknown name, and for a module that cannot be imported, with Python's own reason.
        """
        path = self._entries.get(name, name)
        module, colon, attribute = path.partition(":")
        if not colon or not module or not attribute:
            raise ConfigError(
                f"there is no {self.kind} {name!r}; choose one of {', '.join(self.names)}, or give your own as module:name"
            )
        try:
            found = import_module(module)
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]
            remedy = "; put the folder that holds it on PYTHONPATH" if absent else ""
            raise ConfigError(f"{self.kind} {name!r}: {module} cannot be imported: {error}{remedy}") from error
        if not hasattr(found, attribute):
            raise ConfigError(f"{self.kind} {name!r}: {module} has no {attribute!r}")
        return getattr(found, attribute)


OBJECTIVES = Registry(
    "objective",
    {
        "sft": "cpo_ray.objectives.sft:SFT",
        "sft_all": "cpo_ray.objectives.sft:SFT_ALL",
        "cpo": "cpo_ray.objectives.cpo:CPO",
        "cpo_s": "cpo_ray.objectives.cpo_stabilised:CPO_STABILISED",
        "cpo_d": "cpo_ray.objectives.contrast_regression:CONTRAST_REGRESSION",
        "dpo": "cpo_ray.objectives.dpo:DPO",
        "win_only": "cpo_ray.objectives.win_only:WIN_ONLY",
        "nft": "cpo_ray.objectives.nft:NFT",
        "linear_dpo": "cpo_ray.objectives.linear_dpo:LINEAR_DPO",
    },
)
FAMILIES = Registry(
    "family",
    {
        "sdxl": "cpo_ray.models.sdxl:FAMILY",
        "flux": "cpo_ray.models.flux:FAMILY",
    },
)
BACK_ENDS = Registry(
    "annotation back end",
    {
        "endpoint": "cpo_ray.annotation.back_ends.endpoint:EndpointBackEnd",
        "local": "cpo_ray.annotation.back_ends.local:LocalBackEnd",
        "measuring": "cpo_ray.domains.toy.measuring:MeasuringBackEnd",
    },
)
DOMAINS = Registry(
    "domain",
    {
        "none": "cpo_ray.evaluation.domain:NoDomain",
        "toy": "cpo_ray.domains.toy.domain:ToyDomain",
        "annotator": "cpo_ray.domains.annotator.domain:AnnotatorDomain",
    },
)
SCORERS = Registry(
    "scorer",
    {
        "negatives": "cpo_ray.evaluation.scorers.negatives:Negatives",
        "clip": "cpo_ray.evaluation.scorers.clip:ClipScore",
        "pickscore": "cpo_ray.evaluation.scorers.pickscore:PickScore",
        "hpsv2": "cpo_ray.evaluation.scorers.hpsv2:HPSv2",
        "imagereward": "cpo_ray.evaluation.scorers.imagereward:ImageReward",
        "aesthetic": "cpo_ray.evaluation.scorers.aesthetic:Aesthetic",
        "fid": "cpo_ray.evaluation.scorers.fid:FID",
        "diversity": "cpo_ray.evaluation.scorers.diversity:Diversity",
        "coverage": "cpo_ray.evaluation.scorers.diversity:Coverage",
    },
)
