"""The settings of all jobs, read from TOML and checked before anything heavy is imported. Imports nothing of the packages above
it.
"""

from cpo_ray.config.data import Data, Pictures
from cpo_ray.config.domain import DomainSettings
from cpo_ray.config.evaluation import Evaluation
from cpo_ray.config.expert import ConditionMixture, ExpertSettings
from cpo_ray.config.load import Settings, changed, dump, load, load_as, override, validated
from cpo_ray.config.model import Flow, Lora, Model
from cpo_ray.config.optimization import Optimization
from cpo_ray.config.preference import Preference
from cpo_ray.config.root import Config
from cpo_ray.config.run import Machine, RunSettings, Tracking
from cpo_ray.config.section import ConfigError, Section
from cpo_ray.config.sweep import Sweep
from cpo_ray.config.targets import Targets

__all__ = [
    "ConditionMixture",
    "Config",
    "ConfigError",
    "Data",
    "DomainSettings",
    "Evaluation",
    "ExpertSettings",
    "Flow",
    "Lora",
    "Machine",
    "Model",
    "Optimization",
    "Pictures",
    "Preference",
    "RunSettings",
    "Section",
    "Settings",
    "Sweep",
    "Targets",
    "Tracking",
    "changed",
    "dump",
    "load",
    "load_as",
    "override",
    "validated",
]
