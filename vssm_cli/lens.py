"""vssm lens: a local web page for looking inside models."""

from pathlib import Path

from vssm_cli.parsing import Parser, UsageError, parse

DESCRIPTION = """\
Opens a page on this machine where you choose an image, a model and a patch, and see what the patch takes from where:
activation maps of every route, the receptive field, states before and after fusion, rows of the mixing matrix.
Nothing leaves the machine, and uploads are kept in memory only."""


def main(argv: list[str]) -> int:
    parser = Parser("lens", DESCRIPTION)
    parser.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="a folder of checkpoints and run directories to choose from"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="the models to choose from (default all of ours)")
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="default 8765; 0 for any that is free")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    args = parse(parser, argv)
    if args is None:
        return 0
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, not {args.port}")

    import starlette  # noqa: F401 (a missing extra is told before torch is loaded)
    import uvicorn  # noqa: F401

    from vssm.lens.server import HOST, create_app, listen, serve

    app = create_app(args.checkpoints, args.models)
    listener = listen(args.port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    print(f"vssm lens: {address} (Ctrl-C ends it)", flush=True)
    if not args.no_browser:
        _open_browser(address)
    try:
        serve(app, listener)
    except KeyboardInterrupt:  # the usual end
        print()
    return 0


def _open_browser(address: str) -> None:
    """In a thread: some browsers keep the caller waiting until they are closed."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
