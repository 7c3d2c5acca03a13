"""vssm models: names, sizes, and nothing built for it."""

import vssm
from vssm_cli.command import main


def rows(text):
    cells = ([cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│")
    return {name: (parameters, size) for name, parameters, size in cells}


def test_all_are_listed(capsys):
    assert main(["models"]) == 0
    shown = rows(capsys.readouterr().out)
    assert list(shown) == list(vssm.list_models())
    assert shown["vmamba_tiny"] == ("30.25 M", "224x224")  # table 3 of VMamba prints 30 M
    assert shown["vim_tiny"] == ("7.15 M", "224x224")  # table 1 of Vim prints 7 M


def test_a_pattern(capsys):
    assert main(["models", "*_nano"]) == 0
    shown = rows(capsys.readouterr().out)
    assert "vmamba_nano" in shown and all(name.endswith("_nano") for name in shown)
    for name, (parameters, size) in shown.items():
        model = vssm.create_model(name)
        assert parameters == f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"
        assert size == "x".join(map(str, model.pretrained_cfg["input_size"][1:]))


def test_an_unknown_name(capsys):
    assert main(["models", "vmamba_tny"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("vssm: error: unknown model 'vmamba_tny'; nearest: vmamba_tiny")
