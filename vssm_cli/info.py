"""vssm info: what runs here, and why."""

from vssm._version import __version__
from vssm_cli.parsing import Parser, parse

DESCRIPTION = (
    "Shows which device, core library and instruction set, and which implementation of each operator run here. With "
    "--self-test, also whether they compute right."
)


def main(argv: list[str]) -> int:
    parser = Parser("info", DESCRIPTION)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.add_argument(
        "--self-test",
        action="store_true",
        help="run every operator on every path of this machine, in every dtype, and compare values and gradients with "
        "the reference; exit code 1 if any is wrong",
    )
    args = parse(parser, argv)
    if args is None:
        return 0

    import platform
    from importlib.metadata import version

    import torch
    from rich.console import Console
    from rich.table import Table

    from vssm import ops
    from vssm.inference.device import pick_device
    from vssm_cli.lines import print_fact

    device = pick_device(args.device)
    explanation = ops.explain(device=device, dtype=getattr(torch, args.dtype))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    facts = {
        "vssm": __version__,
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "timm": version("timm"),
        "accelerator": str(accelerator) if accelerator else "none",
        "device": str(device) if args.self_test else f"{device}, {args.dtype}",
        "C++ core": explanation.core,
    }
    console = Console()
    for name, fact in facts.items():
        print_fact(console, name, fact, 13)
    if args.self_test:
        from vssm_cli import self_test

        self_test.run(console, device)
        return 0
    table = Table("operator", "runs", "why")
    for choice in explanation.choices:
        others = "".join(
            f"\nnot {path}: {'see C++ core' if reason in explanation.core else reason}"
            for path, reason in choice.others.items()
        )
        table.add_row(choice.op, choice.path, f"{choice.why}{others}")
    console.print(table)
    return 0
