"""The command: what runs=... may be, where the report goes, mistakes in one sentence."""

import json
import re
import shutil
from pathlib import Path

import pytest
from comparison_sample import draw, make_run

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.runs.result import RunResult, write_result

pytest_plugins = ("plain_plots",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("compare")
    truth = draw(home / "data")
    for name, share in (("7", 0.5), ("b", 0.9)):
        make_run(
            home / "runs" / name, home / "data", truth, f"optimizer.lr={share}e-3", share=share
        )
    return home / "runs"


@pytest.mark.long
def test_a_folder_of_runs_has_its_report_in_it(folder: Path, capsys: pytest.CaptureFixture):
    assert cli.main(["compare", f"runs={folder}"]) == 0
    page = folder / "report/report.html"
    assert (
        f"Report: {page}; in the same folder: report.md, results.csv, curves.csv, tables.tex, "
        "references.bib and plots/" in capsys.readouterr().out
    )
    for name in ("curves.csv", "tables.tex", "references.bib", "plots/learning_rate.pdf"):
        assert (folder / "report" / name).stat().st_size > 100, name
    header, *lines = (folder / "report/curves.csv").read_text().splitlines()
    assert header.startswith("job,name,epoch,")
    assert lines[0].startswith("1,7,1,")
    assert page.is_file()
    assert (folder / "report/plots/learning_rate.png").is_file()
    assert cli.main(["compare", f"runs={folder}"]) == 0  # what it wrote is no run
    assert len((folder / "report/results.csv").read_text().splitlines()) == 3


@pytest.mark.long
@pytest.mark.usefixtures("plain_plots")
def test_several_runs_and_another_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    assert cli.main(["compare", "runs=[7,b]", f"out={tmp_path}/out"]) == 0
    text = (tmp_path / "out/report.md").read_text()
    ap = json.loads((folder / "b/result.json").read_text())["metrics"]["val/mask_ap"]
    assert text.startswith("# Comparison of 7, b")
    assert f"{ap:.3f}" in text
    assert cli.main(["compare", "runs=7", f"out={tmp_path}/one"]) == 0
    assert cli.main(["compare", "runs=[7,b,7,b,7]", f"out={tmp_path}/many"]) == 0
    assert (tmp_path / "many/report.md").read_text().startswith("# Comparison of 5 folders\n")


@pytest.mark.long
@pytest.mark.usefixtures("plain_plots")
def test_a_report_that_is_there_is_not_overwritten_without_a_word(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "out"
    assert cli.main(["compare", f"runs={folder}", f"out={out}"]) == 0
    assert (out / "plots/learning_rate.png").is_file()
    (out / "plots/mine.png").touch()
    assert cli.main(["compare", f"runs={folder}/7", f"out={out}"]) == 2
    assert f"out={out} is not empty" in capsys.readouterr().err
    assert cli.main(["compare", f"runs={folder}/7", f"out={out}", "overwrite=true"]) == 0
    shown = set(re.findall(r"plots/([\w.]+)", (out / "report.md").read_text()))
    assert "learning_rate.png" not in shown
    there = {path.name for path in (out / "plots").iterdir()}
    others = {f"{Path(name).stem}.{kind}" for name in shown for kind in ("pdf", "svg")}
    assert there == {*shown, *others, "mine.png"}, "no plot of the earlier report is left"


@pytest.mark.long
@pytest.mark.usefixtures("plain_plots")
def test_a_run_that_never_began_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    runs = tmp_path / "runs"
    shutil.copytree(folder / "7", runs / "7")
    rejected = RunResult(status="failed", error="UserError: there is no annotation file a.json")
    (runs / "rejected").mkdir()
    write_result(runs / "rejected/result.json", rejected)
    assert cli.main(["compare", f"runs={runs}"]) == 0
    text = (runs / "report/report.md").read_text()
    assert "1 job: 1 finished." in text
    assert "rejected" not in text
    both = f"runs=[{runs}/7,{runs}/rejected]"
    assert cli.main(["compare", both, f"out={tmp_path}/out"]) == 0
    text = (tmp_path / "out/report.md").read_text()
    told = "rejected is left out, since it never started: UserError: there is no annotation file"
    assert text.count(told) == 1
    assert cli.main(["compare", f"runs={runs}/rejected"]) == 2
    assert "no run in" in capsys.readouterr().err


def test_several_runs_without_brackets(capsys: pytest.CaptureFixture):
    assert cli.main(["compare", "runs=a", "b"]) == 2
    said = capsys.readouterr().err
    assert "'b' is not NAME=VALUE: write several values of runs in brackets, 'runs=[a,b]'" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "compare needs runs, which has no default: add runs=..."),
        (["runs=none"], "none is not a folder: give run folders, or folders of runs"),
        (["runs=[]"], "runs=[] must be a path, or a list of one or more paths"),
        (["runs=.", "columns=seed"], "columns=seed needs rows: add rows=OPTION"),
        (
            ["runs=.", "rows=seed", "seeds=std"],
            "seeds=std must be one of mean±std, mean±ci, mean, n",
        ),
        (["runs=.", "outs=x"], "compare has no option 'outs'; did you mean out?"),
    ],
)
def test_a_mistake_is_one_sentence(
    given, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *given]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.long
@pytest.mark.usefixtures("plain_plots")
def test_what_ranks_the_runs_can_be_chosen(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    for metric, title in (("box_ap", "box AP"), ("mask_ap", "mask AP")):
        assert (
            cli.main(["compare", f"runs={folder}", f"out={tmp_path}/{metric}", f"metric={metric}"])
            == 0
        )
        assert f"best {title}" in (tmp_path / metric / "report.html").read_text()
    capsys.readouterr()
    assert cli.main(["compare", f"runs={folder}", f"out={tmp_path}/c", "metric=recall"]) == 2
    assert "metric=recall ranks no runs, mask_ap or box_ap do: add rows=" in capsys.readouterr().err
    given = [f"baseline={tmp_path}/[a]", "metric=box_ap"]
    assert cli.main(["compare", f"runs={folder}", f"out={tmp_path}/d", *given]) == 2
    assert f"baseline={tmp_path}/[a] is none of the finished runs of" in capsys.readouterr().err


@pytest.mark.long
def test_a_table_for_a_paper(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    given = ["rows=backbone", "columns=optimizer.lr", "metric=val/mask_ap", "seeds=mean±std"]
    assert cli.main(["compare", f"runs={folder}", f"out={out}", *given]) == 0
    assert "table.tex and table.csv" in capsys.readouterr().out
    text = (out / "table.tex").read_text()
    ap = json.loads((folder / "b/result.json").read_text())["metrics"]["val/mask_ap"]
    assert rf"& {ap:.3f} \\" in text
    assert "lr=0.0009" in text
    assert "backbone,optimizer.lr,metric,n,mean" in (out / "table.csv").read_text()
    for kind in ("png", "pdf", "svg"):
        assert (out / "plots" / f"table.{kind}").stat().st_size > 1000
    assert "table" in (out / "report.md").read_text()
    assert cli.main(["compare", f"runs={folder}", f"out={out}", "overwrite=true"]) == 0
    left = [path.name for path in [*out.iterdir(), *(out / "plots").iterdir()]]
    assert not [name for name in left if name.startswith("table.")]
    assert cli.main(["compare", f"runs={folder}", f"out={out}", "rows=bakbone"]) == 2
