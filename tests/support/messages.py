"""Messages are tested by their names and numbers: found and expected, but not by their prose."""

import re


def mentions(text: str, *parts: object) -> bool:
    """Look for the parts in this order, each as whole words."""
    words = (rf"(?<!\w){re.escape(str(part))}(?!\w)" for part in parts)
    return re.search(".*?".join(words), text, re.DOTALL) is not None
