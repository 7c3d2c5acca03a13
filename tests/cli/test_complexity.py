"""vssm complexity: the numbers of `vssm.complexity`, for any timm model."""

import pytest
import timm

import vssm
from vssm_cli.command import main


@pytest.mark.parametrize(("name", "size"), [("vmamba_nano", None), ("vim_nano", None), ("test_convnext", 64)])
def test_what_is_printed_is_what_is_counted(name, size, capsys):
    assert main(["complexity", name, *([] if size is None else ["--image-size", str(size)])]) == 0
    assert capsys.readouterr().out == f"{vssm.complexity(timm.create_model(name), size)}\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["vmamba_tny"], "vmamba_tny"),
        (["vmamba_nano", "--image-size", "0"], "input_size must be (C, H, W), (H, W) or one side, all positive"),
    ],
)
def test_mistakes_are_one_line(argv, words, capsys):
    assert main(["complexity", *argv]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and words in shown.err and shown.err.count("\n") == 1
