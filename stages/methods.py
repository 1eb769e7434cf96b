"""methods: the catalogue of distillation, as a table or as JSON."""

import json
from dataclasses import asdict
from typing import Final, get_args

from pipeline.methods.catalogue import METHODS, Method, Strategy
from stages.text import text_table

STRATEGIES: Final[tuple[str, ...]] = get_args(Strategy)
"""Values of `select.strategy`."""
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
    """Print a table, and one line for each method."""
    rows = [_HEADER, *(_cells(method) for method in METHODS.values())]
    described = [f"{method.name}: {_described(method)}" for method in METHODS.values()]
    return "\n".join(
        [
            text_table(rows),
            "",
            *described,
            "",
            "Choose one with `train_student.method`. Every method works with revised labels, a "
            "selection and views.",
            "A method of features uses revised labels only where lambda_kd is above 0.",
        ]
    )


def as_json() -> str:
    """Print the catalogue as a JSON list."""
    return json.dumps([asdict(method) for method in METHODS.values()], indent=1)


def _described(method: Method) -> str:
    """Describe what a method does, its settings, and why it cannot use a top-k cache."""
    text = f"{method.title}. {method.description}"
    if method.settings:
        text += f" Settings: [train_student.{method.name}] {', '.join(method.settings)}."
    if method.sparse:
        text += f" No top-k cache: {method.sparse}."
    return text


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
