"""What a message must say: names, and the numbers that were found and expected; not its prose."""

import re


def mentions(text: str, *parts: object) -> bool:
    """Whether the parts occur in this order, each as whole words."""
    words = (rf"(?<!\w){re.escape(str(part))}(?!\w)" for part in parts)
    return re.search(".*?".join(words), text, re.DOTALL) is not None
