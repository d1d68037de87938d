"""model.yaml in, one frozen Deployment out. docs/model-yaml.md is the reference of the file."""

from memplan.specs.classes import (
    BUILTIN_CLASSES,
    LADDER_CLASS,
    UNKNOWN_CLASS,
    ClassSpec,
    ClassWhen,
    Typical,
    classes_of_record,
)
from memplan.specs.deployment import Deployment
from memplan.specs.loading import load_deployment
from memplan.specs.model_file import json_schema
from memplan.specs.model_source import ModelSource
from memplan.specs.settings import Settings
from memplan.specs.values import TokenRange

__all__ = [
    "BUILTIN_CLASSES",
    "LADDER_CLASS",
    "UNKNOWN_CLASS",
    "ClassSpec",
    "ClassWhen",
    "Deployment",
    "ModelSource",
    "Settings",
    "TokenRange",
    "Typical",
    "classes_of_record",
    "json_schema",
    "load_deployment",
]
