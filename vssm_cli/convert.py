"""vssm convert: an official checkpoint under our names, as safetensors."""

from vssm_cli.parsing import Parser, parse

DESCRIPTION = "Writes the weights of an official VMamba, Spatial-Mamba or Vim file as .safetensors under our names."


def main(argv: list[str]) -> int:
    parser = Parser("convert", DESCRIPTION)
    parser.add_argument("source", metavar="OFFICIAL.pth")
    parser.add_argument("target", metavar="OUT.safetensors")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights instead of the raw ones")
    args = parse(parser, argv)
    if args is None:
        return 0

    from vssm.weights import convert

    print(f"wrote {convert(args.source, args.target, ema=args.ema)}")
    return 0
