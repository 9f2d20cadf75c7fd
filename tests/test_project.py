"""What the project says of itself in several places is the same in all of them."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import companion

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = dict(
    re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M
    )
)
MODULES = sorted(
    path.stem for path in (ROOT / "companion").glob("*.py") if path.stem != "__init__"
)
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("[0-9][0-9]-*.md"))


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_to_a_version_that_it_allows():
    pinned = {canonical(name): version for name, version in PINNED.items()}
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:  # one list of extras names another
            assert requirement.extras <= project["optional-dependencies"].keys()
            continue
        assert requirement.specifier.contains(pinned[canonical(requirement.name)]), requirement


def test_constraints_name_no_build_of_torch_so_that_any_index_has_it():
    assert re.fullmatch(r"[\d.]+", PINNED["torch"])


def test_environment_yml_leaves_the_list_of_packages_to_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert Requirement(python.replace("=", "==")).name == "python"
    assert python.split("=")[1] in PYPROJECT["project"]["requires-python"]
    assert pip == "pip"
    assert packages == {"pip": ["-c constraints.txt", "-e .[book,test]"]}


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert companion.__version__ == PYPROJECT["project"]["version"] == citation["version"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_exported_tested_and_under_the_import_contract(module):
    assert module in companion.__all__  # and so in the reference, which test_site.py reads
    assert (ROOT / "tests" / f"test_{module}.py").exists()
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    assert f"companion.{module}" in re.split(r"\W+(?=companion)", " : ".join(layers))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_is_in_the_contents_and_on_the_map_and_has_a_module(chapter):
    text = (ROOT / "book" / f"{chapter}.md").read_text(encoding="utf-8")
    (label,) = re.findall(r"^\((ch-[\w-]+)\)=\n# ", text, re.M)
    assert f"book/{chapter}" in (ROOT / "_toc.yml").read_text(encoding="utf-8")
    assert (
        f"<{label}>" in (index := (ROOT / "book" / "index.md").read_text(encoding="utf-8"))
        or f"`{label}`" in index
    )
    assert chapter[3:].replace("-", "_") in MODULES


def test_chapters_that_later_ones_build_on_come_first():
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [chapter[3:].replace("-", "_") for chapter in CHAPTERS]
    assert [layer.removeprefix("companion.") for layer in reversed(layers[:-1])] == order


def make(*arguments):
    """What ``make`` would do."""
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_make_runs_one_chapter_and_the_tests_of_its_module(chapter):
    number, _, name = chapter.partition("-")
    command = make("test", f"CHAPTER={number}").stdout
    assert command.endswith(f" book/{chapter}.md tests/test_{name.replace('-', '_')}.py\n")
    assert make("test").stdout.endswith(" --cov\n")


def test_make_says_which_chapters_there_are():
    wrong = make("test", "CHAPTER=99")
    assert wrong.returncode == 2
    numbers = " ".join(chapter[:2] for chapter in CHAPTERS)
    assert f"there is no chapter 99; CHAPTER is one of {numbers}." in wrong.stderr


def test_before_a_commit_runs_exactly_what_make_lint_runs():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (repository,) = yaml.safe_load(text)["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local"  # asks no other host
    assert (hook["entry"], hook["language"]) == ("make lint", "system")
    assert hook["pass_filenames"] is False


def test_the_landing_page_draws_its_picture_with_the_code_that_it_shows():
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    assert "plotting.decision_regions(" in text  # pytest runs it, as it does every chapter
    assert not re.search(r"(hide|remove)-(input|cell)", text)
    assert "```python" not in text


def test_what_the_readme_shows_and_links_to_exists():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert all(link.startswith("https://") or (ROOT / link).exists() for link in links)


def closure(name, seen):
    """The distributions that an installation without extras brings."""
    for requirement in map(Requirement, requires(name) or []):
        needed = canonical(requirement.name)
        if needed not in seen and (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            seen.add(needed)
            closure(needed, seen)
    return seen


def test_an_installation_of_the_companion_alone_brings_no_jupyter():
    brought = closure("deep-learning-companion", set())
    assert {"torch", "numpy", "pooch"} <= brought
    assert not [
        name for name in brought if re.match(r"jupyter|ipy|nb|notebook|sphinx|pytest", name)
    ]


def test_importing_everything_leaves_what_is_rarely_needed_unimported():
    heavy = (
        "matplotlib",
        "sklearn",
        "scipy",
        "pooch",
        "requests",
        "pygments",
        "IPython",
        "ipywidgets",
        "pandas",
    )
    source = f"import companion, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", source], text=True).strip() == "[]"


def test_the_wheel_has_the_package_its_data_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "companion/py.typed",
        "companion/data/fashion_mnist.npz",
        "companion/layers.py",
    } <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "companion",
        "deep_learning_companion",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or "tests" in name]


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "book" / "_static" / "figures").glob("*.svg")),
    ids=lambda path: path.stem,
)
def test_a_drawing_takes_its_ink_from_the_theme(path):
    text = path.read_text(encoding="utf-8")
    assert "currentColor" in text
    assert re.search(r"@media \(prefers-color-scheme: dark\) \{ svg \{ color: #", text)
    assert not re.search(r"""(?:fill|stroke)[=:] *["']?(?:black|white|#000|#fff)""", text)
