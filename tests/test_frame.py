"""The frame of the repository: one list of packages, a README in step with the catalog, files that must be there."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import readme
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def pip_lines() -> list[str]:
    return next(d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict))


def conda_lines() -> list[str]:
    return [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]


def test_environment_python_fits():
    pin = next(line for line in conda_lines() if line.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(pin.split("=")[1] + ".0")


@pytest.mark.parametrize("name", ["README.md", "book/run.md", "Makefile"])
def test_both_bounds_of_python_are_said(name):
    allowed = [n for n in range(30) if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{n}.0")]
    text = (ROOT / name).read_text(encoding="utf-8")
    assert f"3.{allowed[0]} to 3.{allowed[-1]}" in text
    if name == "Makefile":
        assert f"(3, {allowed[0]}) <= sys.version_info[:2] <= (3, {allowed[-1]})" in text


@pytest.mark.parametrize("given, scale, jobs", [
    ({}, "toy", "2"), ({"SURVEYLIB_SCALE": "single", "SURVEYLIB_JOBS": "7"}, "single", "7"),
    ({"SCALE": "full", "SURVEYLIB_SCALE": "toy"}, "full", "2"),
])
def test_make_takes_size_and_jobs_from_the_environment(given, scale, jobs):
    known = ("SCALE", "JOBS", "SURVEYLIB_SCALE", "SURVEYLIB_JOBS", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")
    clean = {key: value for key, value in os.environ.items() if key not in known}
    rules = "show:\n\t@echo $$SURVEYLIB_SCALE $$SURVEYLIB_JOBS\n"
    said = subprocess.run(["make", "-s", "-f", "Makefile", "-f", "-", "show"], cwd=ROOT, input=rules, text=True,
                          env=clean | given, capture_output=True, check=True)
    assert said.stdout.split() == [scale, jobs]


def test_environment_installs_book_and_test_extras_by_name_only():
    line = next(line for line in pip_lines() if line.startswith("-e"))
    extras = re.search(r"\[(.*)\]", line)[1].split(",")
    assert set(extras) == {"book", "test"}
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert [line for line in pip_lines() if not line.startswith("-")] == []  # packages are listed in pyproject only
    assert {re.split(r"[=<>]", line)[0] for line in conda_lines()} == {"python", "pip"}


def test_required_packages_are_dependencies():
    names = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert {"jupyterlab", "torch", "diffusers", "transformers", "matplotlib", "ipywidgets", "jupytext"} <= names


def test_no_package_is_listed_twice():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = [Requirement(r).name.lower() for group in groups for r in group]
    assert sorted(names) == sorted(set(names))


def test_constraints_fit_the_ranges():
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            requirement = Requirement(line.split("#")[0].strip())
            pinned[requirement.name.lower().replace("_", "-")] = next(iter(requirement.specifier)).version
    assert pinned["torch"] == "2.13.0"
    for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        for wanted in map(Requirement, group):
            version = pinned.get(wanted.name.lower().replace("_", "-"))
            assert version is None or wanted.specifier.contains(version), f"{wanted} against {version}"


def test_readme_map_is_in_step():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(text) == text, "run `make readme`"


def test_readme_map_needs_its_marks():
    with pytest.raises(ValueError, match="marks"):
        readme.filled("# nothing here")


def test_readme_says_how_to_start():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for needed in ("make book", "make test", "GPU", "@article{liu2026alignment"):
        assert needed in text
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).exists(), picture


@pytest.mark.parametrize("name", ["LICENSE", "CITATION.cff", "CHANGELOG.md", "Makefile", ".ci/run", "_config.yml"])
def test_file_is_there(name):
    assert (ROOT / name).stat().st_size > 0


def test_ci_script_can_run_and_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text() and script.read_text().rstrip().endswith("make test")


def test_citation_parses():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == "MIT" and citation["version"] == PROJECT["version"]
    assert citation["references"][0]["doi"] == "10.1145/3796982"
