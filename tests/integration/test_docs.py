"""The documents tell the truth: commands parse, recipes are valid, snippets run, and what is named exists."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from guards import build_guard, lively_model
from lasa.cli.commands import NAMES, load_command
from lasa.data.prompts import user_prompt
from lasa.run.recipe import check_recipe
from servers import serving

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    """Fenced code of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(document: Path) -> list[str]:
    """Lines of code that call lasa, fenced or indented, and those named in the text."""
    text = document.read_text("utf-8")
    fenced = "\n".join(blocks(document, "sh"))
    lines = [line.strip() for line in fenced.splitlines() + re.findall(r"^    .*", text, re.MULTILINE)]
    return [line for line in lines if line.startswith("lasa ")]


def test_there_are_documents_for_every_reader():
    names = {path.name for path in DOCUMENTS}
    assert names >= {
        "README.md",
        "CONTRIBUTING.md",
        "how-to-align.md",
        "how-to-research.md",
        "how-to-serve.md",
        "traps.md",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_every_path_leads_somewhere(document):
    text = document.read_text("utf-8")
    linked = [link for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if "://" not in link]
    assert [link for link in linked if not (document.parent / link).exists()] == []
    named = re.findall(r"`((?:src|tests|docs|recipes|benchmarks|scripts|plugins)/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if commands(d)], ids=lambda path: path.name)
def test_every_command_is_one(document):
    for line in commands(document):
        _, name, *arguments = shlex.split(line, comments=True)
        assert name in NAMES, line
        if "--help" not in arguments:
            load_command(name).make_context(name, arguments)


def test_the_recipe_of_the_how_to_is_valid():
    [recipe] = blocks(ROOT / "docs" / "how-to-align.md", "yaml")
    assert set(check_recipe(yaml.safe_load(recipe), "how-to-align.md").systems) > {"base", "lasa"}


def test_the_ablations_of_the_research_page_are_valid():
    [recipe] = blocks(ROOT / "docs" / "how-to-align.md", "yaml")
    [systems] = blocks(ROOT / "docs" / "how-to-research.md", "yaml")
    check_recipe({**yaml.safe_load(recipe), **yaml.safe_load(systems)}, "how-to-research.md")


def test_the_research_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks(ROOT / "docs" / "how-to-research.md", "python"):
        exec(compile(code, "how-to-research.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "semantic bottleneck is layer" in printed and "n-grams:" in printed
    assert (tmp_path / "interpreter" / "README.md").is_file()


def test_the_openai_snippet_runs(tokenizer, capsys):
    model = lively_model("llama", tokenizer)
    guard = build_guard(model, tokenizer, [user_prompt(str(n), "en", f"question {n}") for n in range(4)])
    [code] = blocks(ROOT / "docs" / "how-to-serve.md", "python")
    names = {}
    with serving(guard, max_new_tokens=8) as served:
        exec(compile(code.replace("http://127.0.0.1:8000", served.url), "how-to-serve.md", "exec"), names)
        names["client"].close()
    printed = capsys.readouterr().out
    assert "score" in printed and printed.strip().endswith(("True", "False"))


def test_every_guard_against_a_trap_is_a_test():
    text = (ROOT / "docs" / "traps.md").read_text("utf-8")
    named = re.findall(r"`((?:unit|integration|slow)/[\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 60
    of_the_plugin = re.findall(r"`(plugins/[\w/-]+\.py)::(test_\w+)`", text)
    for path, function in [*((f"tests/{file}", function) for file, function in named), *of_the_plugin]:
        assert f"def {function}(" in (ROOT / path).read_text("utf-8"), f"{path}::{function}"


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text("utf-8")
    [tree] = re.findall(r"^    src/lasa/\n((?:^      .*\n)+)", text, re.MULTILINE)
    named = [name for line in tree.splitlines() for name in re.split(r"  +", line[6:])[0].split(", ") if name]
    package = ROOT / "src" / "lasa"
    assert [name for name in named if not list(package.glob(name))] == []
    told = {path for name in named for path in package.glob(name)}
    here = {path for path in package.glob("*") if path.suffix == ".py" or list(path.glob("*.py"))}
    assert {path.name for path in here - told} <= {"__init__.py", "__main__.py"}
