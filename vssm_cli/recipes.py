"""vssm recipes: the recipes that `vssm fit --config NAME` finds."""

from vssm_cli.parsing import Parser, parse


def main(argv: list[str]) -> int:
    if parse(Parser("recipes", "Lists the training recipes for `vssm fit --config NAME`."), argv) is None:
        return 0
    from vssm_cli.settings import recipes

    found = recipes()
    width = max(map(len, found)) + 2
    for name, path in found.items():
        comment = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{name:<{width}}{comment}")
    return 0
