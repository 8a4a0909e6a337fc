"""Hook of mkdocs: the site's files are those of the repository, under the same paths.

Manuals stand beside the code that they describe (client/README.md, deploy/README.md, ...). With the repository's paths
their relative links work here as they do in a checkout; a link to a file that is no page leads to the file itself.
"""

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(([^)#\s]+)")
_SCHEME = re.compile(r"[a-z]+:")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs_dir` by the repository's pages and what these link to."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    paths = tracked("*.md", "docs/assets")
    paths |= {target for path in paths if path.suffix == ".md" for target in linked(path)}
    for path in sorted(paths):
        files.append(File.generated(config, str(path), abs_src_path=str(ROOT / path)))
    return files


def tracked(*patterns: str) -> set[Path]:
    """Files of the repository, relative to its root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {Path(name) for name in listed if (ROOT / name).is_file()}


def linked(page: Path) -> set[Path]:
    """Files that a page links to, where they exist; mkdocs reports the others."""
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = (link for link in _LINK.findall(text) if not _SCHEME.match(link))
    found = ((ROOT / page.parent / target).resolve() for target in targets)
    return {path.relative_to(ROOT) for path in found if path.is_file() and path.is_relative_to(ROOT)}
