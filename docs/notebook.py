"""Write docs/tutorial.ipynb from docs/tutorial.md: python docs/notebook.py

Text becomes Markdown cells and ```python blocks become code cells; the lines of ```bash blocks get
a "!", and a ```yaml block is written to the file that its first line names. tests/test_tutorial.py
checks that the committed notebook is up to date, and runs it.
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```(python|bash|yaml)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def main() -> None:
    nbformat.write(notebook((DOCS / "tutorial.md").read_text("utf-8")), DOCS / "tutorial.ipynb")


def notebook(text: str) -> nbformat.NotebookNode:
    """The cells of a page."""
    cells = []
    end = 0
    for match in BLOCK.finditer(text):
        cells += markdown(text[end : match.start()])
        cells.append(new_code_cell(CELLS[match.group(1)](match.group(2).strip())))
        end = match.end()
    cells += markdown(text[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    made = new_notebook(cells=cells)
    made.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return made


def markdown(text: str) -> list[nbformat.NotebookNode]:
    return [new_markdown_cell(text.strip())] if text.strip() else []


def shell(code: str) -> str:
    """Each line as IPython runs it; pip installs into the notebook's own Python."""
    lines = code.splitlines()
    return "\n".join(f"%{line}" if line.startswith("pip ") else f"!{line}" for line in lines)


def file(text: str) -> str:
    name, _, content = text.partition("\n")
    return f"%%writefile {name.removeprefix('# ')}\n{content}"


CELLS = {"python": str, "bash": shell, "yaml": file}  # language -> source of a block's cell


if __name__ == "__main__":
    main()
