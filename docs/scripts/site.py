"""What MkDocs cannot do by itself: pages made from files outside docs/, and links to such files.

The sources stay readable where they are, on GitHub too: relative links there are rewritten for the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES_FROM_FILES = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "model-card.md": "src/masklet/weights/nano/README.md",
}
COMMANDS = "reference/command-line.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made from other files, and the page of the commands."""
    for name, source in PAGES_FROM_FILES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS, content=command_line_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites relative links, outside of code blocks."""
    source = PAGES_FROM_FILES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(link: re.Match[str]) -> str:
        return f"]({site_link(link[1], source, page.file.src_uri, str(config.extra['repository']))})"

    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"\]\(([^)\s]+)\)", rewrite, text) for text in parts[::2]]
    return "".join(parts)


def site_link(link: str, source: str, page: str, repository: str) -> str:
    """The link on the site to what a link in a file of the repository leads to.

    Args:
        link: As it stands in the file; absolute links to the site's own repository become links to pages.
        source: The file, from the root of the repository.
        page: The page made of it, from the root of the site.
        repository: Address of the repository.
    """
    target, hash_sign, anchor = link.partition("#")
    if target.startswith(f"{repository}/blob/main/"):
        path = target.removeprefix(f"{repository}/blob/main/")
    elif not target or re.match(r"[a-z]+:", target):
        return link
    else:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    pages = {file: name for name, file in PAGES_FROM_FILES.items()}
    if path not in pages and not path.startswith("docs/"):
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{repository}/{kind}/main/{path}{hash_sign}{anchor}"
    place = pages.get(path, path.removeprefix("docs/"))
    return posixpath.relpath(place, posixpath.dirname(page) or ".") + hash_sign + anchor


def command_line_page() -> str:
    """Every command with its arguments and options, from its own help."""
    from masklet.cli import app

    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    page = ["# Command line", "", "The same is printed by `masklet COMMAND --help`.", ""]
    for name, command in commands.items():
        page += command_section(f"masklet {name}", command)
    return "\n".join(page)


def command_section(name: str, command: Any) -> list[str]:
    """Usage, purpose, parameters and examples of a command, as lines of Markdown."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"## {name}", "", "```text", " ".join(usage.split()), "```", "", plain(command.help or ""), ""]
    records = (
        parameter.get_help_record(context) for parameter in command.params if not getattr(parameter, "hidden", False)
    )
    rows = [f"| `{' '.join(name.split())}` | {plain(text)} |" for name, text in filter(None, records)]
    if rows:
        lines += ["| parameter | what it does |", "|---|---|", *rows, ""]
    if command.epilog:
        lines += ["```text", *(line for line in command.epilog.splitlines() if line), "```", ""]
    return lines


def plain(text: str) -> str:
    """Help as Markdown that is safe in a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
