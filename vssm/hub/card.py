"""A model card: what a model is, what it was trained on, how good it is, under which licence, how to load it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from vssm.hub.errors import HubError

__all__ = ["Card"]

_OPTIONS = {
    "what the model is": "--description TEXT",
    "the data": "--dataset TEXT",
    "the metrics": "--metric NAME=VALUE",
    "the licence": "--license NAME",
    "the name and address of the licence": "--license-name NAME --license-link URL",
}


@dataclass(frozen=True)
class Card:
    """What a model card of a classifier says. `check` refuses one with gaps.

    Args:
        repo_id: "owner/name" on the Hub.
        architecture: timm's name of the model.
        description: what the model is, in a sentence or two.
        dataset: what it was trained on, in words.
        metrics: name -> value, shares in 0..1, on the images that `measured_on` names.
        license: an identifier of the Hub, for example "apache-2.0"; "other" needs `license_name` and `license_link`.
        details: more lines of the section "Details": heading -> text.
        ours: the architecture is one of this package, which has to be imported first.
    """

    repo_id: str
    architecture: str
    description: str
    dataset: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = "the validation images"
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    ours: bool = True

    def missing(self) -> list[str]:
        """What a reader needs to know and the card does not say."""
        found = {
            "what the model is": self.description,
            "the data": self.dataset,
            "the metrics": self.metrics,
            "the licence": self.license,
        }
        if self.license == "other":
            found["the name and address of the licence"] = self.license_name and self.license_link
        return [name for name, value in found.items() if not value]

    def check(self) -> None:
        """Raises HubError that names all that is missing, with the options of `vssm push` that give it."""
        missing = self.missing()
        if missing:
            options = " ".join(_OPTIONS[name] for name in missing)
            raise HubError(f"the model card lacks {', '.join(missing)}; give {options}")

    def text(self) -> str:
        """README.md: metadata that the Hub reads, then the card. Raises HubError for a card with gaps."""
        self.check()
        results = [f"| {name} | {_figure(value)} |" for name, value in self.metrics.items()]
        sections = [
            f"# {self.repo_id.rpartition('/')[2]}",
            self.description,
            "## Details",
            "\n".join(f"- {name}: {value}" for name, value in self._details().items()),
            f"## Results on {self.measured_on}",
            "\n".join(["| metric | value |", "|---|---|", *results]),
            "## Use",
            self.usage(),
        ]
        return f"---\n{self._metadata().to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"

    def timm(self) -> dict[str, Any]:
        """The same as `timm.models.push_to_hf_hub(..., model_card=...)` takes it. Raises HubError as `text`."""
        self.check()
        shown = {f"{name} on {self.measured_on}": _figure(value) for name, value in self.metrics.items()}
        card = {
            "tags": self._metadata().tags,
            "license": self.license,
            "description": self.description,
            "details": self._details() | shown,
            "usage": self.usage(),
        }
        named = {"license_name": self.license_name, "license_link": self.license_link}
        return card | {name: value for name, value in named.items() if value}

    def usage(self) -> str:
        needs = "vssm, timm and torch" if self.ours else "timm and torch"
        with_ours = ["import vssm  # registers the models with timm", ""] if self.ours else [""]
        lines = [
            f"Needs {needs}.",
            "",
            "```python",
            "import timm",
            *with_ours,
            f'model = timm.create_model("hf-hub:{self.repo_id}", pretrained=True).eval()',
            "```",
            "",
            "Images prepared as in the training, and names of the classes:",
            "",
            "```python",
            "import vssm",
            "",
            f'for found in vssm.load("hf-hub:{self.repo_id}").predict("photo.jpg"):',
            "    print(found.path, found.classes)",
            "```",
            "",
            "As a model of transformers:",
            "",
            "```python",
            *with_ours[:1],
            "from transformers import AutoModelForImageClassification",
            "",
            f'model = AutoModelForImageClassification.from_pretrained("{self.repo_id}")',
            "```",
        ]
        return "\n".join(lines)

    def _details(self) -> dict[str, str]:
        licence = self.license_name or self.license or ""
        linked = f"{licence} ({self.license_link})" if self.license_link else licence
        return {
            "Architecture": self.architecture,
            "Data": self.dataset or "",
            "Licence": linked,
            **self.details,
        }

    def _metadata(self) -> ModelCardData:
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=self.dataset or "",
                metric_type="accuracy" if name.startswith("top-") else name,
                metric_name=name,
                metric_value=round(value, 6),
            )
            for name, value in self.metrics.items()
        ]
        return ModelCardData(
            license=self.license,
            license_name=self.license_name,
            license_link=self.license_link,
            library_name="timm",
            pipeline_tag="image-classification",
            tags=["image-classification", "timm", "transformers", *(["vssm"] if self.ours else [])],
            model_name=self.repo_id.rpartition("/")[2],
            eval_results=results,
        )


def _figure(value: float) -> str:
    return f"{value:.4f}"
