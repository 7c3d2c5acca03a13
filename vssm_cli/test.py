"""vssm test: loss and accuracy of a checkpoint on images that neither trained nor chose it."""

from vssm_cli.validate import measure

DESCRIPTION = """\
Measures a checkpoint on the images in FOLDER/test/CLASS, where FOLDER is the data.root it was trained on or another:
`vssm test --checkpoint RUN_DIR [--data.root FOLDER]`. Settings come from the checkpoint; options change them."""


def main(argv: list[str]) -> int:
    return measure("test", DESCRIPTION, "test", argv)
