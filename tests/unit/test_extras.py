"""What lasa alone needs, what each extra brings, and what a person reads where one is missing."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from lasa.extras import EXTRA_OF

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
COMES_WITH = {
    "starlette": "fastapi",
    "anyio": "httpx",
    "pydantic_core": "pydantic",
    "markupsafe": "jinja2",
}
"""Packages that always come with another one."""


def named(requirements):
    return {re.split(r"[\[><=!~;\s]", one)[0].lower().replace("_", "-") for one in requirements}


def imported():
    """Top-level names of everything that the source imports, from elsewhere than lasa and Python."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - {"lasa"} - set(sys.stdlib_module_names)


def test_every_package_that_is_imported_is_declared_and_an_extras_is_known_as_such():
    distributions = packages_distributions()
    for package in sorted(COMES_WITH.get(one, one) for one in imported()):
        extra = EXTRA_OF.get(package)
        requirements = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        homes = {name.lower().replace("_", "-") for name in distributions.get(package, [package.replace("_", "-")])}
        assert homes & named(requirements), f"{package} is not in {extra or 'dependencies'}"


def test_no_package_is_both_lasas_own_and_an_extras():
    own = named(PROJECT["dependencies"])
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert not own & named(requirements) - {"lasa"}, extra


def run_without(packages, code, *arguments):
    """Run code in a process in which these packages are not installed, but for what huggingface_hub needs itself."""
    missing = sorted(set(packages) - named(requires("huggingface_hub")))  # below 2 that is httpx
    start = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n{code}"
    return subprocess.run([sys.executable, "-c", start, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("extra", "package", "arguments"),
    [
        ("align", "trl", ["align", "--preferences", "none.jsonl", "--output", "out"]),
        ("serve", "uvicorn", ["serve", "--model", "embedded", "--interpreter", "none"]),
        ("report", "matplotlib", ["report", "none"]),
        ("evaluate", "pyarrow", ["locate", "--model", "embedded", "--prompts", "prompts.parquet", "--output", "out"]),
    ],
)
def test_a_missing_extra_is_one_message_with_the_command_that_installs_it(extra, package, arguments, tmp_path):
    (tmp_path / "prompts.parquet").write_bytes(b"PAR1")
    located = [str(tmp_path / one) if one.endswith(".parquet") else one for one in arguments]
    missing = [name for name, of in EXTRA_OF.items() if of == extra] + ["datasets"]
    result = run_without(missing, "from lasa.cli import main; main()", *located)
    told = f"Error: This needs the package {package}, which is not installed here: pip install 'lasa[{extra}]'."
    assert (result.returncode, result.stderr.strip(), result.stdout) == (2, told, "")


def test_from_python_too():
    missing = [name for name, of in EXTRA_OF.items() if of in ("align", "report", "evaluate")]
    code = "import lasa\ntry: lasa.run_recipe\nexcept lasa.errors.MissingExtraError as error: print(error)"
    assert re.search(r"pip install 'lasa\[(align|report)\]'", run_without(missing, code).stdout)


SERVED = """
import sys
from pathlib import Path
from lasa import Guard, GenerationSettings, SafetySemanticInterpreter, find_bottleneck, load_model, train_interpreter
from lasa import read_hidden_states, run
from lasa.files.artifacts import model_fingerprint
from lasa.interpreter.probe import InterpreterConfig
from lasa.models.positions import ReadPoint
from lasa.models.rendering import template_fingerprint
from lasa.serving.app import ServerSettings, create_app
from lasa.run.systems import find_system
import lasa.cli.serve, lasa.cli.chat, lasa.cli.generate

model, tokenizer = load_model("embedded")
point = ReadPoint(6, "last", template_fingerprint(tokenizer))
config = InterpreterConfig(point, 128, 8, base_fingerprint=model_fingerprint(model))
guard = Guard(model, tokenizer, SafetySemanticInterpreter(config).eval())
create_app(guard, ServerSettings(model_name="served"))
[answer] = guard.generate([({"role": "user", "content": "hello"},)], GenerationSettings(max_new_tokens=2))
print(answer.decision.reason)
"""


def test_reading_guarding_and_serving_need_no_other_extra():
    missing = {name for name, extra in EXTRA_OF.items() if extra != "serve"} | {"statsmodels", "pandas"}
    result = run_without(missing, SERVED)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
