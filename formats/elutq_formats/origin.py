"""Where a model comes from, in the words that a model file records and that GGUF tools show."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BaseModel:
    """A model that another was made from.

    Attributes:
        name: of the model.
        organization: that made it.
        repo_url: where it is.
    """

    name: str
    organization: str | None = None
    repo_url: str | None = None

    @staticmethod
    def of_repository(repository: str) -> "BaseModel":
        """Describe ``organisation/name`` on the Hugging Face hub."""
        organization, _, name = repository.rpartition("/")
        return BaseModel(name, organization or None, f"https://huggingface.co/{repository}")


@dataclass(frozen=True)
class Origin:
    """What a model file records of where its weights come from.

    Attributes:
        source: as who has it calls it: a folder, a file, ``org/name`` or ``org/name:FILE``.
        name: of the model.
        revision: of the repository, where it is of one.
        license: as the hub spells it; None where nothing says it.
        basename: the name without the size and what comes after it; None where nothing says it.
        size_label: its number of weights as names of models have it; None where nothing says it.
        base_models: what the model was made from, as far as anything says it.
    """

    source: str
    name: str
    revision: str | None = None
    license: str | None = None
    basename: str | None = None
    size_label: str | None = None
    base_models: tuple[BaseModel, ...] = ()


def find_snapshot(place: Path) -> tuple[str, str, str] | None:
    """Return what a path in the hub's cache is: repository, revision, and the path in it; None where it is no such."""
    for folder in (place, *place.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            repository = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
            return repository, folder.name, place.relative_to(folder).as_posix()
    return None
