"""Many small cases under one test id, and messages matched by their names and numbers."""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import wraps

import pytest


def looped(names: str, cases: Iterable[object]) -> Callable:
    """Run a test for every case, and list the cases that fail.

    Takes what `pytest.mark.parametrize` takes. For quick cases that change no fixture: all cases
    share the fixtures of one test.

    Args:
        names: of the arguments, separated by commas.
        cases: a value for each, or a tuple of values where there are several names.
    """
    wanted, cases = [name.strip() for name in names.split(",")], list(cases)

    def decorate(test: Callable) -> Callable:
        @wraps(test)
        def run(**fixtures: object) -> None:
            failures, first = [], None
            for case in cases:
                values = case if len(wanted) > 1 else (case,)
                try:
                    test(**fixtures, **dict(zip(wanted, values, strict=True)))
                except (Exception, pytest.fail.Exception) as error:
                    failures.append(f"{names} = {case}: {type(error).__name__}: {error}")
                    first = first or error
            if failures:
                listed = "\n".join(failures)
                raise AssertionError(
                    f"{len(failures)} of {len(cases)} cases failed\n{listed}"
                ) from first

        signature = inspect.signature(test)
        kept = [p for p in signature.parameters.values() if p.name not in wanted]
        run.__signature__ = signature.replace(parameters=kept)
        return run

    return decorate


def mentions(text: str, *parts: object) -> bool:
    """Look for the parts in this order, each as whole words."""
    words = (rf"(?<!\w){re.escape(str(part))}(?!\w)" for part in parts)
    return re.search(".*?".join(words), text, re.DOTALL) is not None
