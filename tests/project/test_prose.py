"""The measure of the pages' readability: sentences, intervals, private words, code blocks."""

from scripts.prose import (
    MAX_MEAN_WORDS,
    PRIVATE_WORDS,
    faults_of,
    not_introduced,
    page_of,
)
from tests.support.cases import looped


@looped(
    "text, sentences",
    [
        ("One two. heartcut writes three.", ["One two.", "heartcut writes three."]),
        ("One two, e.g. three. Four five?", ["One two, e.g three.", "Four five?"]),
        ("Lan et al. 2024 say so.", ["Lan et al 2024 say so."]),
        ("One ... two three.", ["One ... two three."]),
        (
            "**Answer first.** Evidence (a table) second.",
            ["Answer first.", "Evidence (a table) second."],
        ),
        ("Write this: and that.", ["Write this: and that."]),
        ("See [a long link](x.md), and `code`, too.", ["See a long link, and code, too."]),
        ("Run `heartcut select my.toml. Now`, then.", ["Run heartcut_select_my.toml._Now, then."]),
        ("A line\nand its end.", ["A line and its end."]),
        ("![An alternative text. Of a picture.](a.png) One two.", ["One two."]),
        ("# A heading. Of words.\n\n| a table | of. Words |\n|---|---|\n| a | b. C |\n", []),
        ("```sh\nheartcut select. Again it\n```\n", []),
        ("- One two.\n- Three four\n", ["One two.", "Three four"]),
    ],
)
def test_markdown_is_split_into_sentences(text, sentences):
    assert page_of("a.md", text).sentences == sentences


@looped(
    "text, part",
    [
        ("word " * (MAX_MEAN_WORDS + 1) + ".", "words in the mean sentence"),
        ("It gains 1.2 points [0.4, 2.0] over it.", "interval [0.4, 2.0]"),
        ("It loses one point [-2, 0.5].", "interval [-2, 0.5]"),
        ("Set `seeds = [0, 1]` in the file.", None),
        ("| gain |\n|---|\n| 1.2 [0.4, 2.0] |\n", None),
    ],
)
def test_faults_of_a_page(text, part):
    page = page_of("a.md", text)
    faults = list(faults_of(page, text))
    assert len(faults) == (part is not None)
    assert all(part in fault for fault in faults)


def test_a_long_readme_is_a_fault():
    text = "One two three. " * 500
    assert not list(faults_of(page_of("docs/a.md", text), text))
    (fault,) = faults_of(page_of("README.md", text), text)
    assert "1500 words" in fault


@looped(
    "text, lines",
    [
        ("Run this:\n\n```sh\nmake\n```\n", []),
        ("Run this:\n\n<!-- not run: takes minutes -->\n\n```sh\nmake\n```\n", []),
        ("Run this.\n\n    make\n\n<!-- output -->\n\n    done\n", []),
        ("# Run this\n\n```sh\nmake\n```\n", [3]),
        ("# Failed\n\n<!-- message -->\n\n```text\nerror\n```\n", []),
        ("Run this:\n\n```sh\nmake\n```\n\n```sh\nmake\n```\n", [7]),
    ],
)
def test_code_blocks_follow_a_sentence(text, lines):
    assert list(not_introduced(text)) == lines


@looped(
    "text, found",
    [("it tells you", True), ("Strangers", True), ("intellect, strange, file.tell()", False)],
)
def test_private_words_are_whole_words(text, found):
    assert (PRIVATE_WORDS.search(text) is not None) is found
