"""What is published: metadata, the contents of the wheel and the source archive, and addresses that agree."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com") + "/main/"
WITH_ADDRESSES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CITATION.cff", "mkdocs.yml")),
    *(ROOT / ".github").rglob("*.yml"),
    *(ROOT / "docs").glob("*.md"),
]


def own_links(page):
    """Files of the repository that a page links to by their address."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(rf"{re.escape(REPOSITORY)}/(?:blob|tree|edit)/main/([^)\s#\"]*)", text)
    return links + re.findall(rf"{re.escape(RAW)}([^)\s#\"]*)", text)


@pytest.mark.parametrize("page", WITH_ADDRESSES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_to_the_own_repository_name_files_that_exist(page):
    for path in own_links(page):
        assert (ROOT / path).exists(), path


def test_every_address_of_the_project_is_that_of_its_metadata():
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    for page in WITH_ADDRESSES:
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"(?:github\.com|githubusercontent\.com)/([\w.-]+/masklet)\b", text)
        assert set(found) <= {owner_and_name}, page
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0])
    assert site["extra"]["repository"] == REPOSITORY
    assert site["site_url"] == PROJECT["urls"]["Documentation"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == REPOSITORY
    assert citation["license"] == PROJECT["license"]


def test_a_package_index_can_show_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(own_links(ROOT / "README.md")) > 20
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_animation_of_the_readme_is_small():
    (name,) = re.findall(rf"!\[[^]]*\]\({re.escape(RAW)}(\S+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert (ROOT / name).stat().st_size < 3_000_000


def test_public_extras_pin_nothing_and_hold_no_tools():
    extras = PROJECT["optional-dependencies"]
    assert not {"test", "test-all", "bench", "docs", "dev"} & extras.keys()
    for requirement in [*PROJECT["dependencies"], *(item for items in extras.values() for item in items)]:
        assert "==" not in requirement


def test_the_supported_pythons_are_those_of_the_public_ci():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    classified = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    assert matrix["python"] == classified
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert PROJECT["requires-python"] == f">={classified[0]}"


def test_the_public_ci_calls_targets_of_the_makefile():
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    called = re.findall(r"make ([\w-]+)", text)
    assert {"test", "check", "docs", "demo"} <= set(called) <= set(targets)


def build(kind, folder):
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (archive,) = folder.iterdir()
    return archive


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        names = wheel.namelist()
        metadata = next(wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} == {"masklet", info}
    foreign = re.compile(r"(^|/)(tests?|recipes|examples|docs|benchmarks)/|\.(jpg|png|mp4)$")
    assert [name for name in names if foreign.search(name)] == []
    tracked = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/masklet").rglob("*.py")}
    assert tracked <= set(names)
    assert "masklet/weights/nano/model.safetensors" in names
    assert "masklet/py.typed" in names
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"\nProject-URL: Repository, {REPOSITORY}\n" in metadata
    assert f"{info}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_source_archive_holds_tests_and_examples(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/test_api.py", "tests/golden/meta/image.npz", "examples/demo.py", "examples/images/truck.jpg"):
        assert name in names
    for name in ("docs/index.md", "mkdocs.yml", "Makefile", "constraints.txt", "recipes/nano/train.py", "CITATION.cff"):
        assert name in names
    assert not [name for name in names if re.search(r"(^|/)(node_modules|\.venv|__pycache__|\.hypothesis|site)/", name)]
