"""vssm erf, activation, states, matrix: figures and arrays as asked for, mistakes in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

import vssm
from vssm.analysis import activation_map, effective_receptive_field, mixing_matrix, state_maps
from vssm.data.photographs import photographs
from vssm.inference.subject import Source, read_subject
from vssm_cli.command import main

COMMANDS = ("erf", "activation", "states", "matrix")
NANO = ("--image-size", "32", "--models", "vmamba_nano", "spatial_mamba_nano")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def subject(name="vmamba_nano", count=1):
    found = read_subject(Source(name, None), 32)
    return found.model, [image for _, image in found.images(photographs(count))]


def test_erf(tmp_path, capsys):
    assert main(["erf", *NANO, "test_convnext", "--count", "2", "--npy", "arrays"]) == 0
    shown = capsys.readouterr().out
    model, images = subject(count=2)
    field = effective_receptive_field(model, images)
    areas = ", ".join(f"{square.threshold:.0%} in {square.share:.1%}" for square in field.squares())
    assert f"vmamba_nano, random weights (seed 0): {areas} of the image" in shown
    assert "32x32, 2 images" in shown and "figure erf.png" in shown
    found = np.load(tmp_path / "arrays" / "vmamba_nano.random-weights--seed-0-.npy")
    np.testing.assert_allclose(found, field.map, rtol=1e-3, atol=1e-12)
    assert Image.open("erf.png").size[0] > 700
    assert len(list((tmp_path / "arrays").iterdir())) == 3


def test_erf_of_checkpoints(tmp_path, capsys, figures):
    """One checkpoint: before and after. More of one model: its course."""
    for name in ("epoch0.pth", "epoch9.pth"):
        torch.save(vssm.create_model("vmamba_nano").state_dict(), name)
    common = ["--image-size=32", "--count=1", "--out=a.png"]
    assert main(["erf", "--models", "vmamba_nano=epoch0.pth", "spatial_mamba_nano", *common]) == 0
    axes = figures.pop().axes[:-1]
    titles = [each.get_title(loc="left") for each in axes]
    assert titles == ["vmamba_nano", "spatial_mamba_nano", "epoch0.pth", ""]
    assert axes[3].texts[0].get_text() == "no checkpoint given"
    assert main(["erf", "--models", "vmamba_nano=epoch0.pth", "vmamba_nano=epoch9.pth", *common]) == 0
    titles = [each.get_title(loc="left") for each in figures.pop().axes[:-1]]
    assert titles == ["random weights (seed 0)", "epoch0.pth", "epoch9.pth"]
    assert capsys.readouterr().out.count("of the image") == 3 + 3


def test_activation(tmp_path, figures):
    argv = ["--query", "2,5", "--channel", "3", "--weights", "qk", "scan", "--npy", "arrays"]
    assert main(["activation", *NANO, "vim_nano", "--query", "2,3", "--out", "a.pdf"]) == 0
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    figures.clear()
    assert main(["activation", *NANO, "--block", "1.1", *argv]) == 0
    model, (image,) = subject()
    want = activation_map(model, image, (2, 5), "1.1", "scan", 3)
    found = np.load("arrays/vmamba_nano.chelsea.scan.columns-forwards.npy")
    np.testing.assert_allclose(found, want.routes[1], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(np.load("arrays/vmamba_nano.chelsea.scan.combined.npy"), want.combined, rtol=1e-6)
    panels = figures[0].axes[:-1]
    routes = ["rows forwards", "columns forwards", "rows backwards", "columns backwards"]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[0] == "chelsea" and titles[3:8] == [*routes, "diagonal"]
    (star,) = panels[0].lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (5.5 * 4 - 0.5, 2.5 * 4 - 0.5), "on a map of 8 x 8 of 32 x 32"
    (star,) = panels[3].lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (5, 2)
    shown = panels[4].images[0].get_array()
    np.testing.assert_allclose(shown, want.routes[1].abs() / want.routes[1].abs().max(), rtol=1e-6, atol=1e-12)


def test_fractions_of_the_image(figures):
    assert main(["activation", *NANO, "--query", "0.3,0.99"]) == 0
    (star,) = figures[0].axes[2].lines
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (3, 1), "of 4 x 4 patches"


def test_states(figures):
    assert main(["states", *NANO, "vim_nano", "--npy", "arrays"]) == 0
    model, (image,) = subject("spatial_mamba_nano")
    before, after = state_maps(model, image).mean()
    np.testing.assert_allclose(np.load("arrays/spatial_mamba_nano.chelsea.before.npy"), before[0], rtol=1e-5)
    np.testing.assert_allclose(np.load("arrays/spatial_mamba_nano.chelsea.after.npy"), after[0], rtol=1e-5)
    titles = [axes.get_title(loc="left") for axes in figures[0].axes[:-1]]
    first = ["chelsea", "before fusion", "", "weight by distance"]
    assert titles == [*first, "chelsea", "before fusion", "after fusion", "weight by distance", *first[:3]]
    labels = [line.get_label() for line in figures[0].axes[7].lines]
    assert labels == ["along", "across", "along, alone", "across, alone"]


def test_matrix(figures):
    assert main(["matrix", *NANO, "--query", "1,2", "--npy", "arrays"]) == 0
    model, (image,) = subject("spatial_mamba_nano")
    M = mixing_matrix(model, image, skip=False)
    found = np.load("arrays/spatial_mamba_nano.chelsea.scan-and-fusion.npy")
    np.testing.assert_allclose(found, M, rtol=1e-5, atol=1e-12)
    titles = [axes.get_title(loc="left") for axes in figures[0].axes[5:-1]]
    names = ["linear attention", "scan", "scan and fusion"]
    assert titles == ["chelsea", *names, *(f"row: {name}" for name in names)]
    (arrow,) = figures[0].axes[6].texts
    assert arrow.xy == (0, 6), "row 1, column 2 of 4 x 4"


def test_own_images(tmp_path, capsys):
    Image.new("L", (50, 40), 90).save("grey.png")
    Image.new("RGBA", (30, 60), (9, 99, 200, 128)).save("clear.png")
    assert main(["matrix", "--models", "vmamba_nano", "--images", ".", "--out", "a.png"]) == 0
    (tmp_path / "bad.png").write_bytes(b"damaged")
    assert main(["matrix", "--models", "vmamba_nano", "--images", "bad.png", "--out", "b.png"]) == 1
    assert capsys.readouterr().err == "vssm: error: bad.png: not an image, or of a kind that Pillow cannot read\n"
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "a.jpg"], "--out a.jpg must end in .png, .pdf, .svg"),
        (["--out", "none/a.png"], "none is not there; make the folder first"),
        (["--image-size", "0"], "--image-size must be at least 1, not 0"),
    ],
)
def test_usage(command, argv, words, capsys):
    assert main([command, *argv]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["activation", "--query", "9,9"], "query (9, 9) is outside of the map of block 2.1, which has 4 x 4 patches"),
        (["activation", "--block", "9"], "there is no block 9; the network has 0.0, 0.1"),
        (["matrix", "--block", "2.7"], "there is no block '2.7'; the network has 0.0, 0.1"),
        (["matrix", "--route", "4"], "block 2.1 has no route 4; choose 0 (rows forwards)"),
        (["states", "--channel", "999"], "there is no channel 999"),
        (["states", "--models", "resnet10t"], "ResNet has no selective scan to look at"),
        (["erf", "--stage", "3"], "there is no stage 3"),
        (["erf", "--models", "vmamba_nan"], "unknown model 'vmamba_nan'"),
        (["erf", "--models", "none.ckpt"], "none.ckpt"),
        (["erf", "--images", "none.png"], "none.png"),
    ],
)
def test_mistakes_are_one_line(argv, words, capsys, tmp_path):
    command, *rest = argv
    models = [] if "--models" in argv else ["--models", "vmamba_nano"]
    assert main([command, *models, *rest, "--out", "a.png"]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
    assert not (tmp_path / "a.png").exists()


def test_a_query_is_two_numbers(capsys):
    for text, words in (("5", "'5' is not ROW,COLUMN"), ("-1,2", "rows and columns are counted from 0")):
        assert main(["activation", f"--query={text}"]) == 2
        assert words in capsys.readouterr().err


def test_a_matrix_that_is_too_large(capsys):
    assert main(["matrix", "--models", "vmamba_nano", "--image-size", "160", "--block", "0.0"]) == 1
    assert "block 0.0 works on 80 x 80 = 6400 pixels" in capsys.readouterr().err
