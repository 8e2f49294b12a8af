import pytest

from vgsplus.cli import main
from vgsplus.doctor import examine
from vgsplus.errors import VgsplusError


def doctor(capsys, what):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(what)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize("name", ["", "absent"])
def test_what_is_not_a_subject_lists_what_was_expected(tmp_path, name):
    with pytest.raises(VgsplusError) as error:
        examine(tmp_path / name)
    message = str(error.value)
    assert message.startswith(str(tmp_path / name))
    for sought in ("machine", "corpus.json", "config.yaml", "checkpoints", "runs"):
        assert sought in message


def test_a_folder_is_recognised_by_what_it_holds(tiny_corpus, trained, reproduction):
    subjects = [examine(folder).subject for folder in (tiny_corpus, trained, reproduction)]
    assert subjects == [f"corpus {tiny_corpus}", f"run {trained}", f"reproduction {reproduction}"]


def test_the_command_ends_with_0_where_all_is_ok_and_with_1_where_not(corpus, tmp_path, capsys):
    code, out, _ = doctor(capsys, corpus)
    assert code == 0
    assert "0 faults" in out
    next((corpus / "audio").glob("train-*.wav")).unlink()
    code, out, _ = doctor(capsys, corpus)
    assert code == 1
    assert "fault" in out
    (tmp_path / "other").mkdir()
    code, out, err = doctor(capsys, tmp_path / "other")
    assert code == 1
    assert not out
    assert "Name the word machine" in err


def test_the_command_that_resumes_is_printed_on_one_line(run, capsys):
    newest = max((run / "checkpoints").iterdir())
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    code, out, _ = doctor(capsys, run)
    assert code == 0
    assert f"vgsplus train {run}/config.yaml --out {run} --resume" in out.splitlines()
