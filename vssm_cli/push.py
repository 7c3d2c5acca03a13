"""vssm push: a trained classifier on the Hugging Face Hub."""

import argparse
import tempfile
from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Uploads the best checkpoint of a run with a generated model card, so that timm.create_model("hf-hub:OWNER/NAME") and
transformers load it. Log in before: `hf auth login`, or HF_TOKEN. With --dry-run the folder is written and nothing is
sent; edit its README.md if you like, then `vssm push FOLDER OWNER/NAME`."""


def main(argv: list[str]) -> int:
    parser = Parser("push", DESCRIPTION)
    parser.add_argument("source", type=Path, metavar="DIR", help="a run of `vssm fit`, or a folder of --dry-run")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository on the Hub; created if it is not there")
    parser.add_argument("--license", metavar="NAME", help="of the weights, as the Hub spells it: apache-2.0, ...")
    parser.add_argument("--license-name", metavar="NAME", help="with --license other")
    parser.add_argument("--license-link", metavar="URL", help="with --license other")
    parser.add_argument("--dataset", metavar="TEXT", help="what it was trained on, in words")
    parser.add_argument("--description", metavar="TEXT", help="what the model is; a sentence is made when not given")
    parser.add_argument(
        "--metric", action="append", metavar="NAME=VALUE", help="in place of the run's best validation; repeatable"
    )
    parser.add_argument("--private", action="store_true", help="create the repository private")
    parser.add_argument("--replace-card", action="store_true", help="replace a README.md that the repository has")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="write the folder only")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder of --dry-run; DIR/hub when not given")
    args = parse(parser, argv)
    if args is None:
        return 0
    args.metrics = _metrics(args.metric)
    if args.out is not None and not args.dry_run:
        raise UsageError("--out is the folder of --dry-run; give both, or neither")
    return _push(args)


def _metrics(given: list[str] | None) -> dict[str, float] | None:
    if given is None:
        return None
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise UsageError(f"--metric {one} must be NAME=NUMBER, for example top-1=0.93") from None
    return found


def _push(args: argparse.Namespace) -> int:
    from rich.console import Console

    from vssm_cli.lines import print_line

    console = Console()
    with console.status("loading torch") as status:
        from vssm.hub import check_login, describe_run, push_folder, write_folder
        from vssm.hub.push import check_repo_id

        check_repo_id(args.repo)
        if not args.dry_run:
            check_login()
        options = {"private": args.private, "replace_card": args.replace_card, "message": args.message}
        if (args.source / "config.json").exists() and not args.dry_run:
            status.update("uploading")
            address = push_folder(args.source, args.repo, **options)
        else:
            names = ("license", "license_name", "license_link", "dataset", "description", "metrics")
            card = describe_run(args.source, args.repo, **{name: getattr(args, name) for name in names})
            card.check()
            status.update("writing")
            if args.dry_run:
                folder = write_folder(args.source, args.out or args.source / "hub", card)
                print_line(console, f"wrote {folder}; upload it with: vssm push {folder} {args.repo}")
                return 0
            with tempfile.TemporaryDirectory() as scratch:
                folder = write_folder(args.source, Path(scratch) / "hub", card)
                status.update("uploading")
                address = push_folder(folder, args.repo, **options)
    print_line(console, address)
    print_line(console, f'load it with timm.create_model("hf-hub:{args.repo}", pretrained=True)')
    return 0
