"""README.md and docs: every block is run or says why not, every link leads somewhere.

The pages are followed from the top in one workspace, with small images and short trainings in
place of those that a page speaks of, and with a folder in place of a bucket. What a page shows as
output has to be printed by its commands, but for numbers; messages have to be in the product.
"""

import os
import re
import subprocess
import tomllib
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import duckdb
import pytest
import typer.main
from typer.core import TyperGroup

import cli
from scripts import demo_images
from stages.config.file import ConfigError, config_from_tree, load_config, with_overrides
from stages.config.root import Config
from tests.project.shown_output import not_in_product, not_printed
from tests.support.cases import looped
from tests.support.commands import ROOT, Finished, heartcut
from tests.support.documentation import (
    KINDS,
    MESSAGE,
    NOT_RUN,
    PAGES,
    PYTHON,
    SHELL,
    SQL,
    TOML,
    Block,
    Undecided,
    all_blocks,
    anchors,
    blocks_of,
    heartcut_arguments,
    inline_code,
    links,
    named_paths,
    read,
)
from tests.support.image_folders import save_folder
from tests.support.workspaces import TINY, linked_copy, tables_in

BLOCKS = all_blocks()
BUCKET, CACHE_ID = "s3://team/caches", "0a7e1c919380"
"""Names of the team's place and of a cache on the pages."""
OF_OTHERS = re.compile(r"train_student\.arch=(timm|torchvision):")
"""Networks that are large for a test that is not about them."""
REPORTS: dict[tuple[str, ...], Finished] = {}
"""Arguments and configuration of reports that are written: a second one takes as long again."""
SWEEP = """
[sweep]
points = { "plain" = ["train_student.distil=false"], "KD" = [] }
"""


def small(toml: str) -> str:
    """A configuration of a page, with short trainings of small networks."""
    toml = re.sub(r"^epochs = \d+", "epochs = 1", toml, flags=re.MULTILINE)
    toml = re.sub(r"^seeds = .*", "seeds = [0]", toml, flags=re.MULTILINE)
    return re.sub(r'"resnet\d+a"', '"resnet8a"', toml)


def is_whole(block: Block) -> bool:
    """True if a TOML block is a whole configuration, which the page then calls my.toml."""
    return block.text.startswith("workspace = ")


README_TOML = next(
    b.text for b in BLOCKS if b.page == "README.md" and b.text.startswith("workspace = ")
)


@pytest.fixture(scope="module")
def workspace(digits: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages begin with: configurations, images prepared, a teacher, the
    demo. What a page makes is there for the others too, and none needs another's."""
    root = tmp_path_factory.mktemp("docs")
    linked_copy(ROOT / "configs", root / "configs")
    _write_demo(root / "configs")
    linked_copy(digits.workspace, root / "work" / "digits")
    linked_copy(digits.selections_folder, root / "elsewhere")
    (table,) = tables_in(root / "elsewhere")
    table.rename(root / "elsewhere" / "mine.parquet")
    save_folder(root / "images", train=60, size=32)
    _write_teacher(root / "teacher.safetensors")
    demo_images.write_missing(root / "work" / "demo", demo_images.demo_files())
    _write_teacher(root / "work" / "demo" / "teacher.safetensors", num_classes=10)
    with chdir(root):
        reader = Reader(root)
        reader.write(README_TOML)
        for command in ("prepare my.toml", "cache-teacher my.toml", "compare configs/digits.toml"):
            reader.heartcut(command.split())
    return root


def _write_demo(configs: Path) -> None:
    """The demo's configurations with the settings of `digits`, and what they compare."""
    head = f'workspace = "work/digits"\n{TINY}'
    for name, table in (("digits", "[compare]"), ("digits-sweep", "[sweep]")):
        text = (ROOT / "configs" / f"{name}.toml").read_text()
        tail = text[text.index(f"\n{table}") :]
        path = configs / f"{name}.toml"
        path.unlink()
        path.write_text(head + small(tail))
    for name in ("demo", "demo-teacher"):
        path = configs / f"{name}.toml"
        path.unlink()
        path.write_text(small((ROOT / "configs" / f"{name}.toml").read_text()))


def _write_teacher(path: Path, *, num_classes: int = 3) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline.models.zoo import build

    torch.manual_seed(0)
    network = build("resnet8a", num_classes=num_classes)
    save_file({key: value * 0.5 for key, value in network.state_dict().items() if value.ndim}, path)


class Reader:
    """Follows one page."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.before: dict[str, object] = {}
        self.names: dict[str, object] = {}
        self.printed: list[str] = []
        """Lines that the page's commands and programs printed so far."""
        self.missing: list[str] = []
        """Shown lines that are not among them."""

    def follow(self, block: Block) -> None:
        done = {SHELL: self.shell, TOML: self.toml, PYTHON: self.python, SQL: self.sql}
        if block.kind in done:
            done[block.kind](block)
        missing = not_printed(block.output, self.printed)
        self.missing += [f"{block.place} shows what was not printed: {line}" for line in missing]

    def toml(self, block: Block) -> None:
        tree = tomllib.loads(block.text)
        try:
            config_from_tree(tree, origin=block.place)
        except ConfigError:  # continues the fragment before it
            tree = merged(self.before, tree)
            config_from_tree(tree, origin=block.place)
        self.before = tree
        if is_whole(block):
            self.write(block.text)

    def write(self, toml: str) -> None:
        (self.workspace / "my.toml").write_text(small(toml) + SWEEP)
        load_config(self.workspace / "my.toml")

    def python(self, block: Block) -> None:
        """Run a program, which may use the names of those before it on the page."""
        with redirect_stdout(StringIO()) as out:
            exec(compile(block.text, block.place, "exec"), self.names)
        self.printed += out.getvalue().splitlines()

    def sql(self, block: Block) -> None:
        duckdb.connect().execute(block.text)

    def shell(self, block: Block) -> None:
        for words in block.commands:
            check_command(words)
            self.run(words)

    def run(self, words: list[str]) -> None:
        program, *arguments = words
        if program == "heartcut":
            self.heartcut(arguments)
        elif program == "make":
            for command in made_by(arguments):
                self.heartcut(command)
        elif program == "tensorboard":
            events = (self.workspace / arguments[arguments.index("--logdir") + 1]).rglob("events.*")
            assert list(events), words
        else:
            assert program == "export", f"{words}: mark the block as not run"

    def heartcut(self, arguments: list[str]) -> None:
        """Processes, measuring and networks of others have tests of their own."""
        if arguments[0] == "launch":
            arguments = arguments[3:]
        if OF_OTHERS.search(" ".join(arguments)):
            return
        words = [self.local(word) for word in arguments if word != "--measure"]
        configuration = (self.workspace / "my.toml").read_text()
        key = (*words, configuration)
        done = REPORTS.get(key) or heartcut(*words, quiet=False)
        assert done.code == 0, (words, done.err)
        if words[0] == "report":
            REPORTS[key] = done
        printed = (done.out + done.err).replace(str(self.workspace / "team"), BUCKET)
        self.printed += printed.replace(f"{self.workspace}/", "").splitlines()

    def local(self, word: str) -> str:
        """A word with the folder that stands for the bucket, and the cache in it."""
        if CACHE_ID in word:
            word = word.replace(CACHE_ID, self.cache_id())
        return word.replace(BUCKET, str(self.workspace / "team"))

    def cache_id(self) -> str:
        """ID of the cache of the training images of my.toml."""
        from pipeline.artefacts.cache.teacher_cache import TeacherCache

        folder = load_config(self.workspace / "my.toml").caches_folder
        paths = [path.parent for path in folder.glob("*/manifest.json")]
        return max(paths, key=lambda path: TeacherCache.open(path).shape.num_samples).name


def merged(first: dict[str, object], second: dict[str, object]) -> dict[str, object]:
    """``second`` over ``first``, table by table."""
    both = {**first, **second}
    for key in first.keys() & second.keys():
        one, other = first[key], second[key]
        if isinstance(one, dict) and isinstance(other, dict):
            both[key] = merged(one, other)
    return both


def made_by(arguments: list[str]) -> list[list[str]]:
    """Arguments of `heartcut` in a make target."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stderr)
    words = [command for block in [_as_block(done.stdout)] for command in block.commands]
    called = [heartcut_arguments(line) for line in words if line[0].endswith("bin/heartcut")]
    # A command within $( ) ends with a bracket; -q and a redirection change only what is printed.
    bare = [[word.removesuffix(")") for word in command] for command in called if command]
    return [[word for word in one if word not in ("", "-q", ">/dev/null")] for one in bare]


def _as_block(text: str) -> Block:
    return Block(page="make", line=0, language="sh", text=text, comment="")


def check_command(words: list[str]) -> None:
    """Commands, options, keys, targets and scripts that a line names exist."""
    if words[0] == "make":
        for command in made_by([w for w in words[1:] if w != "..."]):
            check_heartcut(command)
    for script in (word for word in words if word.startswith("benchmarks/")):
        check_benchmark(script, words)
    arguments = heartcut_arguments(words)
    if arguments and not arguments[0].startswith("$"):
        check_heartcut(arguments)


def check_benchmark(script: str, words: list[str]) -> None:
    sources = [ROOT / script, *ROOT.glob("benchmarks/_*.py")]
    text = "".join(source.read_text() for source in sources)
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert f'"{option}"' in text, words


def check_heartcut(arguments: list[str]) -> None:
    """The command line parses, and its configuration loads with what it overrides."""
    command = typer.main.get_command(cli.app)
    parent = None
    rest = list(arguments)
    while isinstance(command, TyperGroup):
        name = rest.pop(0)
        assert name in command.commands, arguments
        command = command.commands[name]
    context = command.make_context(" ".join(arguments[:2]), rest, parent=parent)
    if arguments[0] == "launch":
        check_heartcut([context.params["stage"], *context.params["arguments"]])
        return
    overrides = context.params.get("override") or []
    file = context.params.get("config")
    if file is not None:
        load_named(str(file), overrides)


def load_named(file: str, overrides: list[str]) -> None:
    if file == "my.toml":
        tree = tomllib.loads(README_TOML)
        with_overrides(config_from_tree(tree, origin=file), overrides)
    else:
        load_config(ROOT / file, overrides=overrides)


@looped("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks_of(page, read(page)):
        assert block.kind in KINDS
        assert block.kind != NOT_RUN or not block.output, "output of commands that are not run"


@pytest.mark.parametrize("page", PAGES)
def test_the_page_can_be_followed_from_the_top(page, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    reader = Reader(workspace)
    reader.write(README_TOML)
    for block in blocks_of(page, read(page)):
        reader.follow(block)
    assert not reader.missing, "\n".join(reader.missing)


@looped("block", [block for block in BLOCKS if block.kind == MESSAGE])
def test_every_message_is_one_of_the_product(block):
    missing = not_in_product(block.text)
    assert not missing, "\n".join([f"{block.place} shows what is printed nowhere:", *missing])


@looped("block", [block for block in BLOCKS if block.comment.startswith("not run")])
def test_what_is_not_run_names_what_exists(block):
    for words in block.commands:
        check_command(words)


@looped("page", PAGES)
def test_every_file_of_the_repository_that_is_named_exists(page):
    texts = [*inline_code(page), *(block.text for block in BLOCKS if block.page == page)]
    missing = {path for path in named_paths("\n".join(texts)) if not (ROOT / path).exists()}
    assert not missing


@looped("page", PAGES)
def test_commands_in_prose_exist(page):
    for code in inline_code(page):
        words = code.split()
        if words[:1] not in (["heartcut"], ["make"]):
            continue
        if words[0] == "make" and len(words) > 1:
            made_by([word for word in words[1:2] if word.islower()])
        if words[0] == "heartcut" and len(words) > 1:
            check_names(words[1:])


def check_names(words: list[str]) -> None:
    """Subcommand and options of a command with placeholders."""
    command = typer.main.get_command(cli.app)
    while isinstance(command, TyperGroup) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        assert words[0] in command.commands, words
        command = command.commands[words.pop(0)]
    options = {option for param in command.params for option in [*param.opts, "--help"]}
    if command.name != "launch":
        assert {word for word in words if word.startswith("--")} <= options, words


@looped("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), f"{page}: {link}"


def test_a_new_block_needs_a_decision():
    for text in ("    a formula = of + something\n", "```yaml\na: 1\n```\n"):
        (block,) = blocks_of("new.md", text)
        with pytest.raises(Undecided, match=r"new\.md:1"):
            assert block.kind
    (block,) = blocks_of("new.md", "<!-- not run: I would rather not -->\n```sh\nls\n```\n")
    with pytest.raises(Undecided, match="no reason"):
        assert block.kind


PRINTED = (
    "| KD             | 1 | 88.10 % | +1.2 (one common seed, no interval) |",
    "[2/5] cache-teacher work/digits/caches/0a7e1c919380: 1 view in 3.1 s, 812 kB",
    "selected  455 of 1,132 candidates, 40.19 %  \u2588\u2588\u2588\u258c",
)


@looped(
    "line, holds",
    [
        ("| KD | 5 | 90.12 ± 0.31 % | +1.45 [0.80, 2.10] |", True),
        ("| KD | 5 | 90.12 ± 0.31 % |", False),
        ("| label revision | 5 | 90.12 ± 0.31 % | +1.45 [0.80, 2.10] |", False),
        ("[2/5] cache-teacher work/digits/caches/77d02be41f09: 4 views in 1 min 2 s, 12 MB", True),
        ("[2/5] cache-teacher ...: 4 views in ...", True),
        ("[2/5] cache-teacher ...: 4 crops in ...", False),
        ("selected  80 of 90 candidates, 88.9 %", True),
        ("chosen  80 of 90 candidates, 88.9 %", False),
        ("", True),
    ],
)
def test_shown_output_is_compared_but_for_numbers(line, holds):
    assert (not_printed(line, PRINTED) == []) is holds


@looped(
    "line, holds",
    [
        ("error: my.toml: unknown key select.etta (did you mean eta?).", True),
        ("error: my.toml: unknown word select.etta (did you mean eta?).", False),
        ("error: a.parquet was not found. Something that nothing prints.", False),
        ("error: my.toml is not valid TOML: no value (at line 3, column 5). ...", True),
        ("error: my.toml is not good TOML: no value (at line 3, column 5). ...", False),
    ],
)
def test_shown_messages_are_compared_with_the_product(line, holds):
    assert (not_in_product(line) == []) is holds


def test_what_follows_a_prompt_is_output():
    (block,) = blocks_of("new.md", "```console\n$ heartcut \\\n    methods\nkd\n$ make\n```\n")
    assert block.commands == [["heartcut", "methods"], ["make"]]
    assert block.output == "kd"
    (block,) = blocks_of("new.md", "<!-- example: a poem -->\n```text\nlines\n```\n")
    with pytest.raises(Undecided, match="a formula"):
        assert block.kind
