"""The papers' tables: every row is built and counted, and prints as its paper printed it or says why not."""

import dataclasses
from importlib.resources import files

import pytest
import torch

import vssm
from vssm.analysis.tables import NAMES, load_table
from vssm.analysis.tables.count import build, count, prints_as

OURS = set(vssm.list_models())


def _cases():
    """Every row that can be built; the baselines and the middle sizes of larger images with --full."""
    for name in NAMES:
        for row in load_table(name).rows:
            if row.model is None:
                continue
            long = row.size in (288, 384, 512, 640) or (row.model not in OURS and row.model != "convnext_tiny")
            long |= name == "coco-3x" or (isinstance(row.size, tuple) and "tiny" not in row.model)
            yield pytest.param(name, row, id=f"{name}: {row.name}", marks=[pytest.mark.full] if long else [])


@pytest.mark.parametrize(("name", "row"), list(_cases()))
def test_a_row_prints_as_its_paper_or_says_why_not(name, row):
    found = count(row)
    same = (row.params is None or prints_as(found.params / 1e6, row.params)) and (
        row.gmacs is None or prints_as(found.macs / 1e9, row.gmacs)
    )
    explained = set(row.notes) - {"windows", "dynamic", "kernels", "depths"}
    assert same or explained
    if same and row.model in OURS and row.gmacs is not None:
        assert not explained, "a reason for a deviation that is not there"
    if row.params is not None:  # whatever the reason, no row is another network
        assert found.params / 1e6 == pytest.approx(float(row.params), rel=0.06)
    if row.gmacs is not None and name != "sasf":
        assert found.macs / 1e9 == pytest.approx(float(row.gmacs), rel=0.02)


XCIT = [(name, row) for name in NAMES for row in load_table(name).rows if "xcit" in row.notes]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param(name, row, id=f"{name}: {row.name}", marks=[] if row.name == "xcit_s12_16" else [pytest.mark.full])
        for name, row in XCIT
    ],
)
def test_xcit_prints_with_what_its_note_names(name, row):
    assert isinstance(row.size, int)
    with torch.device("meta"):
        network = build(row)
    counted = vssm.complexity(network, row.size, batch_norm="eval").macs
    queries = len(network.cls_attn_blocks) * (row.size // 16) ** 2 * network.embed_dim**2
    assert len(network.cls_attn_blocks) == 2 and not prints_as(counted / 1e9, row.gmacs)
    assert prints_as((counted + queries) / 1e9, row.gmacs)


def test_footnotes_of_vmamba_are_notes():
    vim = load_table("imagenet").row("vim_small")
    assert vim.train_throughput == 344 and "232" in load_table("imagenet").notes["vim_float32"]
    assert "vim_float32" in vim.notes
    hivit = load_table("resolution").row("hivit_tiny@768")
    assert hivit.train_throughput == 37 and "memory" in hivit.notes


def test_few_rows_of_ours_deviate():
    deviating = {(n, row.name) for n in NAMES for row in load_table(n).rows if {"cascade"} & set(row.notes)}
    assert deviating == {("scan-patterns", "cascade")}


def test_tables_of_detection_explain_their_baselines():
    """Swin-S is the same backbone in both tables: what the cascade adds to it is what it adds to Swin-T."""
    one, three = load_table("coco-1x"), load_table("cascade")
    added = [int(three.row(n).gmacs) - int(one.row(n).gmacs) for n in ("swin_tiny", "swin_small", "convnext_small")]
    assert added == [478, 484, 479]
    notes = {key for name in ("coco-1x", "coco-3x", "cascade") for row in load_table(name).rows for key in row.notes}
    assert notes == {"swin", "near", "nat"}
    ours = [row for name in ("coco-1x", "coco-3x", "cascade", "ade20k") for row in load_table(name).rows
            if row.model in OURS]  # fmt: skip
    assert len(ours) == 9 + 6 + 2 + 11 and {key for row in ours for key in row.notes} == {"depths"}


def test_the_files_are_the_tables():
    stored = {file.name for file in (files("vssm.analysis.tables") / "data").iterdir()}
    assert stored == {f"{name}.json" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_consistent(name):
    table = load_table(name)
    names = [row.name for row in table.rows]
    assert len(names) == len(set(names))
    used = {key for row in table.rows for key in row.notes}
    assert used == set(table.notes)
    for row in table.rows:
        assert row.model is not None or row.notes, "what cannot be built says why"
        for printed in (row.params, row.gmacs, *row.scores.values()):
            assert printed is None or float(printed) > 0
        assert set(row.scores) <= set(table.scores)


def test_overrides_are_few():
    for name in ("scan-patterns", "initialization", "d-state", "ssm-ratio", "mlp-ratio", "activation", "fusion"):
        for row in load_table(name).rows:
            most = 2 if "no conv" in row.name or name in ("d-state", "mlp-ratio") else 1
            assert len(row.options) <= most, row.built_as()


def test_select():
    table = load_table("imagenet")
    assert [row.name for row in table.select(["swin_*", "vim_small"]).rows] == [
        "swin_tiny",
        "swin_small",
        "swin_base",
        "vim_small",
    ]
    with pytest.raises(ValueError, match="table imagenet has no row 'swin_tny'; nearest: swin_tiny"):
        table.select(["swin_*", "swin_tny"])
    with pytest.raises(ValueError, match="there is no table 'dstate'; nearest: d-state"):
        load_table("dstate")
    with pytest.raises(ValueError, match="there is no table '#'; choose one of imagenet, acceleration"):
        load_table("#")


def test_prints_as():
    assert prints_as(30.249, "30.2") and prints_as(30.249, "30") and prints_as(5.6269, "5.63")
    assert not prints_as(30.251, "30.2") and not prints_as(4.904, "4.91")


def test_built_as():
    row = dataclasses.replace(load_table("fusion").row("dilations=1"))
    assert row.built_as() == "spatial_mamba_tiny dilations=(1,)"
