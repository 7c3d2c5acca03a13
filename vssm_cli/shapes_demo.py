"""vssm demo detect, vssm demo segment: a small network learns generated shapes, in minutes on two cores."""

from pathlib import Path

from vssm_cli.parsing import Stop

GOAL = 0.60
# The recipe of each, the metric of the goal, and what the wording calls it.
KINDS = {
    "detect": ("shapes_detection", "val_box_ap50", "box AP50"),
    "segment": ("shapes_segmentation", "val_miou", "mIoU"),
}
TRAIN, VAL = 400, 100
WARM_EPOCHS = 6
SHOWN = 12


def run(kind: str, folder: Path, seed: int, epochs: int | None) -> int:
    """Writes the shapes, trains the network on them, evaluates, draws."""
    from rich.console import Console

    from vssm._yaml import read_yaml
    from vssm.settings import Settings
    from vssm_cli.settings import recipes

    recipe, metric, name = KINDS[kind]
    console = Console()
    with console.status("loading torch and Lightning"):
        from vssm.data.shapes import write_shapes
        from vssm.inference.predictor import load
        from vssm.report.write import write_report
        from vssm.train.progress import LiveProgress
        from vssm_cli.lines import print_line
        from vssm_cli.predictions import Pictures
        from vssm_cli.show import announce, class_table, device_of, metrics_table

    shapes = folder / "shapes"
    with console.status("drawing shapes"):
        shapes.mkdir(parents=True)
        objects = write_shapes(shapes, TRAIN, VAL, seed=seed, own_colors=True)
    print_line(console, f"{shapes}: {TRAIN} training images with {objects['train']} objects, {VAL} to validate")

    chosen = Settings.from_dict(read_yaml(recipes()[recipe]))
    if kind == "detect":  # whose backbone learns far faster from every pixel than from boxes
        warm = Settings.from_dict(read_yaml(recipes()["shapes_segmentation"]))
        warm.data.root, warm.seed, warm.out, warm.trainer.devices = str(shapes), seed, str(folder / "backbone"), 1
        warm.trainer.max_epochs = warm.trainer.check_val_every_n_epoch = epochs or WARM_EPOCHS
        _train(warm, console, announce, LiveProgress)
        chosen.model.init_from = str(folder / "backbone")
    chosen.data.root, chosen.seed, chosen.out, chosen.trainer.devices = str(shapes), seed, str(folder / "network"), 1
    if epochs is not None:
        chosen.trainer.max_epochs = epochs
    _train(chosen, console, announce, LiveProgress)
    run_dir = folder / "network"
    with console.status("evaluating"):
        predictor = load(run_dir, device=device_of(chosen.trainer.accelerator))
        evaluation = predictor.evaluate(details=0)
    metrics = evaluation.metrics()
    console.print(metrics_table(metrics, predictor.task.headings))
    console.print(class_table(predictor.classes, evaluation.quality.by_class()))
    pictures = Pictures(folder / "pictures", predictor.task, predictor.classes)
    files = sorted((shapes / "images" / "val").glob("*.png"))[:SHOWN]
    for prediction in predictor.predict_files(files):
        pictures.write(prediction)
    print_line(console, f"{len(files)} validation images with what was found: {folder / 'pictures'}")
    with console.status("writing the report"):
        write_report([run_dir], folder / "report.html", device_of(chosen.trainer.accelerator))
    print_line(console, f"report with results beside the truth: {folder / 'report.html'}")
    if metrics[metric] < GOAL:
        raise Stop(f"the goal of {GOAL:.0%} {name} was missed: {metrics[metric]:.2%}")
    return 0


def _train(settings, console, announce, progress) -> None:
    """By the path of `vssm fit`."""
    from vssm.train.fit import build, fit, start_run

    experiment = build(settings)
    run = start_run(settings)
    announce(console, experiment)
    fit(experiment, run, callbacks=[progress(console, metrics=experiment.task.columns)])
    run.close()
    console.print()
