"""methods: the catalogue of distillation, for people and for machines."""

import json
from dataclasses import asdict

from pipeline.methods.catalogue import METHODS, Method
from stages.text import text_table

_HEADER = (
    "method",
    "distils",
    "a top-k cache",
    "lambda_ce",
    "lambda_kd",
    "lambda_feature",
    "paper",
)


def as_text() -> str:
    """A table, and what each method does, one line each."""
    rows = [_HEADER, *(_cells(method) for method in METHODS.values())]
    told = [f"{method.name}: {_described(method)}" for method in METHODS.values()]
    return "\n".join(
        [
            text_table(rows),
            "",
            *told,
            "",
            "Choose one with `train_student.method`. Every one of them takes revised labels, a "
            "selection and views.",
            "Methods of features take revised labels too where lambda_kd is above 0.",
        ]
    )


def as_json() -> str:
    """The catalogue as a JSON list."""
    return json.dumps([asdict(method) for method in METHODS.values()], indent=1)


def _described(method: Method) -> str:
    """What a method does, what it is set by, what it refuses."""
    told = f"{method.title}. {method.description}"
    if method.settings:
        told += f" Settings: [train_student.{method.name}] {', '.join(method.settings)}."
    if method.sparse:
        told += f" No top-k cache: {method.sparse}."
    return told


def _sparse(method: Method) -> str:
    if not method.sparse:
        return "serves"
    only = method.sparse_temperature
    return "no" if only is None else f"at temperature {only:g}"


def _cells(method: Method) -> tuple[str, ...]:
    return (
        method.name,
        "features" if method.needs_features else "logits",
        _sparse(method),
        f"{method.lambda_ce:g}",
        f"{method.lambda_kd:g}",
        f"{method.lambda_feature:g}" if method.needs_features else "-",
        f"{method.paper}, arXiv:{method.arxiv}" if method.arxiv else f"{method.paper}, CVPR",
    )
