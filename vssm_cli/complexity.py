"""vssm complexity: parameters and multiply-adds by operator."""

from vssm_cli.parsing import Parser, parse

DESCRIPTION = "Counts a model's parameters and multiply-adds of one image by operator, the way the papers count them."


def main(argv: list[str]) -> int:
    parser = Parser("complexity", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="any timm model name; `vssm models` lists ours")
    parser.add_argument("--image-size", type=int, metavar="SIDE", help="the model's own when not given")
    args = parse(parser, argv)
    if args is None:
        return 0

    from vssm.analysis.complexity import complexity
    from vssm.tasks.classification import create_classifier

    print(complexity(create_classifier(args.model), args.image_size))
    return 0
