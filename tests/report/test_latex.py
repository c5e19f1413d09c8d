"""Tables in LaTeX, and the file of references."""

import re

from maskrcnn_lit.report.latex import REFERENCES, escape, latex_table


def test_a_table_has_a_line_for_each_row():
    lines = latex_table("AP of a_b", ["class", "AP"], [["cat & dog", "0.5"], ["100 %", "-"]])
    assert lines.splitlines() == [
        r"\begin{table}",
        r"\caption{AP of a\_b}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"class & AP \\",
        r"\midrule",
        r"cat \& dog & 0.5 \\",
        r"100 \% & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_what_latex_reads_as_a_command_is_text():
    assert escape(r"\input{x} ~ ^ $ # 32²") == (
        r"\textbackslash{}input\{x\} \textasciitilde{} \textasciicircum{} \$ \# 32$^2$"
    )


def test_two_columns_to_the_left_and_a_bold_cell():
    lines = latex_table(
        "t", ["a", "b", "AP"], [["x", "y", "0.1 ± 0.2"]], left=2, bold={(0, 2)}
    ).splitlines()
    assert lines[2] == r"\begin{tabular}{llr}"
    assert lines[6] == r"x & y & \textbf{0.1 $\pm$ 0.2} \\"


def test_the_references_are_whole():
    text = REFERENCES.read_text(encoding="utf-8")
    entries = re.findall(r"^@(\w+)\{(\w+),", text, re.MULTILINE)
    keys = [key for _, key in entries]
    assert {"he2017maskrcnn", "lin2014coco", "bolya2020tide", "maskrcnn_lit"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert text.count("{") == text.count("}")
