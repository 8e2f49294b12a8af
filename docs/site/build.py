"""Build the documentation site into out/docs/html: `make docs`.

The pages open from the folder; their search needs a server (`python -m http.server -d out/docs/html`).

The sources are pages that a repository shows as they are: README.md, CONTRIBUTING.md and CHANGELOG.md in
the root, docs/*.md, and the notebooks in examples/. They are copied into one folder, with their links to each
other rewritten, because Zensical reads a single folder. Afterwards every link of the HTML is checked, and
that no page loads anything from another server.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUT = ROOT / "out" / "docs"
PAGES, HTML = OUT / "pages", OUT / "html"


def main() -> None:
    """Collect the pages, build them, and check the result; exits with 1 if anything is wrong."""
    shutil.rmtree(OUT, ignore_errors=True)
    collect()
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "--config-file",
        "zensical.toml",
    ]
    if subprocess.run(command, cwd=OUT, check=False).returncode:
        sys.exit(1)
    if faults := [*missing_in_navigation(), *broken_links()]:
        sys.exit("\n".join(faults))
    sys.stdout.write(f"Documentation: {HTML / 'index.html'}\n")


def collect() -> None:
    """Copy all sources into PAGES."""
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("site"))
    shutil.copytree(HERE / "api", PAGES / "api")
    shutil.copy(HERE / "zensical.toml", OUT)
    for file in (HERE / "site.css", ROOT / "LICENSE", ROOT / "CITATION.cff"):
        shutil.copy(file, PAGES)
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        text = re.sub(r"""(\]\(|(?:href|src)=")docs/""", r"\1", page.read_text())
        (PAGES / ("index.md" if page.name == "README.md" else page.name)).write_text(text)
    (PAGES / "examples").mkdir()
    for notebook in sorted((ROOT / "examples").glob("*.ipynb")):
        (PAGES / "examples" / f"{notebook.stem}.md").write_text(as_markdown(notebook))
    # A link named after its file becomes one named as in the navigation.
    names = dict(re.findall(r'{ "([^"]+)" = "([\w-]+\.md)" }', (HERE / "zensical.toml").read_text()))
    for page in PAGES.glob("*.md"):
        text = re.sub(r"\]\(\.\./", "](", page.read_text())
        text = re.sub(r"\]\((examples/[\w-]+)\.ipynb\)", r"](\1.md)", text)
        for name, file in names.items():
            text = re.sub(rf"\[(docs/)?{file}\]\({file}", f"[{name}]({file}", text)
        page.write_text(text)


def as_markdown(notebook: Path) -> str:
    """Return the cells of a notebook as a page; a cell that begins with "!" is a command of the shell."""
    cells = json.loads(notebook.read_text())["cells"]
    texts = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            text = f"```sh\n{text[1:]}\n```" if text.startswith("!") else f"```python\n{text}\n```"
        texts.append(text)
    page = "\n\n".join(texts).replace("](../docs/", "](../")
    return re.sub(r"\]\(([\w-]+)\.ipynb\)", r"](\1.md)", page)


def missing_in_navigation() -> list[str]:
    """Name pages that no entry of the navigation leads to."""
    navigation = json.dumps(tomllib.loads((HERE / "zensical.toml").read_text())["project"]["nav"])
    pages = [page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md")]
    unlisted = [page for page in pages if f'"{page}"' not in navigation]
    return [f"{page}: add it to nav in docs/site/zensical.toml" for page in unlisted]


class Page(HTMLParser):
    """The ids of a page, where it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element defines or needs."""
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.loads += [values[name] for name in ("src", "data") if name in values]
        if tag == "link" and values.get("rel") not in {"canonical", "prev", "next"}:
            self.loads.append(values.get("href", ""))


def broken_links() -> list[str]:
    """List links to files and headings that do not exist, and what would be loaded from elsewhere."""
    pages = {path: Page(path) for path in HTML.rglob("*.html") if path.name != "404.html"}
    faults = []
    for path, page in pages.items():
        name = path.relative_to(HTML)
        for link in {*page.links, *page.loads}:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                if link in page.loads and url.scheme != "data":
                    faults.append(f"{name}: loads {link}")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file():
                faults.append(f"{name}: {link} does not exist")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids:
                faults.append(f"{name}: {link} names no heading")
    return faults


if __name__ == "__main__":
    main()
